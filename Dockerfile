# One image per process:
#
#   docker build --target gateway      -t kluis/gateway .
#   docker build --target issuer       -t kluis/issuer .
#   docker build --target portal       -t kluis/portal .
#   docker build --target cryptoserver -t kluis/cryptoserver .
#   docker build --target kluis        -t kluis/kluis .
#
# Configuration, certificates and PIN files are mounted at /etc/kluis; the
# process runs as an unprivileged user with a read-only root file system.

FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=unknown
RUN for p in gateway issuer portal kluis; do \
      CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$VERSION" -o /out/$p ./cmd/$p || exit 1; \
    done
RUN CGO_ENABLED=1 go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$VERSION" -o /out/cryptoserver ./cmd/cryptoserver
RUN echo 'kluis:x:65532:65532::/:/sbin/nologin' > /out/passwd

FROM scratch AS gateway
COPY --from=build /out/passwd /etc/passwd
COPY --from=build /out/gateway /gateway
USER 65532:65532
ENTRYPOINT ["/gateway"]
CMD ["--config", "/etc/kluis/gateway.yaml"]

FROM scratch AS issuer
COPY --from=build /out/passwd /etc/passwd
COPY --from=build /out/issuer /issuer
USER 65532:65532
ENTRYPOINT ["/issuer"]
CMD ["--config", "/etc/kluis/issuer.yaml"]

FROM scratch AS portal
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/passwd /etc/passwd
COPY --from=build /out/portal /portal
USER 65532:65532
ENTRYPOINT ["/portal"]
CMD ["--config", "/etc/kluis/portal.yaml"]

FROM scratch AS kluis
COPY --from=build /out/passwd /etc/passwd
COPY --from=build /out/kluis /kluis
USER 65532:65532
ENTRYPOINT ["/kluis"]

# The cryptoserver needs a C library for the PKCS#11 module. The module itself
# is the HSM vendor's: mount its folder and name the file in the configuration
# (module: /opt/hsm/lib.so). kluis beside it is for kluis keys ceremony and
# kluis hsm check.
FROM debian:bookworm-slim AS cryptoserver
COPY --from=build /out/cryptoserver /out/kluis /usr/local/bin/
VOLUME ["/opt/hsm"]
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/cryptoserver"]
CMD ["serve", "--config", "/etc/kluis/cryptoserver.yaml"]
