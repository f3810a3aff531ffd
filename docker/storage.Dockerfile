# S3 storage with a data folder that its user owns: a new volume takes the owner of the folder it is mounted on.
FROM chrislusf/seaweedfs:4.48@sha256:4e61d15fd35994cb1e43e1e553dff106794841fd9a99ade2fc8c8bfce4d7872d

USER 0:0
RUN mkdir -p /srv/storage \
    && chown 10001:10001 /srv/storage
# weed looks for it in its working directory first; the base image's own would put the names of objects elsewhere.
WORKDIR /etc/seaweedfs
COPY docker/filer.toml ./filer.toml
USER 10001:10001
ENTRYPOINT ["weed"]
CMD ["server", "-help"]
