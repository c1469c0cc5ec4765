"""Exit 0 when the URL in the first argument answers 200."""

import sys
import urllib.request

with urllib.request.urlopen(sys.argv[1], timeout=4) as response:
    sys.exit(response.status != 200)
