# The image of nodes and of the command line, and that of etcd's members: Forebay with what a node needs, no torch, no pyarrow.
#
#   docker build --tag forebay .                     BASE may be anything like Debian that has python3 with venv and pip
#   docker build --target etcd --tag forebay-etcd .  ETCD_IMAGE as its publisher makes it, with a data directory for our user

ARG BASE=python:3.12-slim
ARG ETCD_IMAGE=quay.io/coreos/etcd:v3.5.21

# A new volume takes owner and mode of the folder that it is mounted on: so no container has to run as root, to hand over one.
FROM ${BASE} AS folders
RUN install -d -m 0700 -o 10001 -g 10001 /etcd/etcd-data

FROM ${ETCD_IMAGE} AS etcd
COPY --from=folders --chown=10001:10001 /etcd/ /
USER 10001:10001
ENTRYPOINT ["etcd"]

FROM ${BASE} AS build
# The environment has no pip of its own, and is compiled here, because later nobody may write to it.
RUN python3 -m venv --without-pip /opt/forebay
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY client client
COPY storenode storenode
COPY loader loader
RUN python3 -m pip --python /opt/forebay/bin/python install --no-cache-dir --constraint constraints.txt ".[node]"

FROM ${BASE}
COPY --from=build /opt/forebay /opt/forebay
RUN install -d -m 0700 -o 10001 -g 10001 /var/lib/forebay /etc/forebay
ENV PATH=/opt/forebay/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    FOREBAY_DATA_DIR=/var/lib/forebay \
    FOREBAY_HOST=0.0.0.0
USER 10001:10001
EXPOSE 7070
STOPSIGNAL SIGTERM
# Past urllib, which would ask a proxy that the environment may name.
HEALTHCHECK --interval=10s --timeout=6s --start-period=60s --retries=3 CMD ["python", "-c", "\
import http.client; c = http.client.HTTPConnection('127.0.0.1', 7070, timeout=5); c.request('GET', '/readyz'); \
raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["forebay"]
CMD ["node"]
