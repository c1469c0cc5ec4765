# Stands in for the image of PostgreSQL where no image can be pulled: the same variables, secret file, folder of
# start-up scripts and data folder, from Debian's package.
ARG BASE=python:3.11-slim
FROM ${BASE}
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql >/dev/null \
 && ln -s /usr/lib/postgresql/*/bin/* /usr/local/bin/
RUN mkdir -p /var/lib/postgresql/data /docker-entrypoint-initdb.d /var/run/postgresql \
 && chown postgres: /var/lib/postgresql/data /var/run/postgresql
COPY postgres.sh /
USER postgres
ENTRYPOINT ["sh", "/postgres.sh"]
