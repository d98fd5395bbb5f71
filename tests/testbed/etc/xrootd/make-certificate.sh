#!/bin/sh
# Run as xrootd on a host with a door: its certificate, and the authority that signed it, whose hash is printed: OpenSSL
# looks for HASH.0 in a directory of authorities.
set -eu
tls=/storage/tls
mkdir -p "$tls"
request() { # subject name option...
    subject=$1 name=$2
    shift 2
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 7 -subj "$subject" \
        -keyout "$tls/$name.key" -out "$tls/$name.pem" "$@"
}
request "/CN=Testbed authority" ca
request "/CN=$(hostname)" host -CA "$tls/ca.pem" -CAkey "$tls/ca.key" \
    -addext "subjectAltName=DNS:$(hostname)" -addext basicConstraints=critical,CA:FALSE
openssl x509 -in "$tls/ca.pem" -noout -hash
