#!/bin/sh
# Installs what clients/go is built with, where it is missing, and checks that Node.js is there for clients/node.
set -eu
packages="golang-go golang-google-grpc-dev golang-github-golang-protobuf-1-5-dev
          protobuf-compiler protoc-gen-go protoc-gen-go-grpc"

fail() {
	echo "clients: $1" >&2
	exit 1
}

command -v npm >/dev/null && node -e 'process.exit(parseInt(process.versions.node) >= 20 ? 0 : 1)' ||
	fail "clients/node needs Node.js 20 or newer with npm; install them first"
command -v dpkg-query >/dev/null ||
	fail "clients/go is built with Debian's packages ($(echo $packages)), and this is no Debian"

missing=""
for package in $packages; do
	dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then
	sudo=""
elif sudo -n true 2>/dev/null; then
	sudo="sudo -n"
else
	fail "clients/go needs packages that only root can install: apt-get install$missing"
fi
$sudo apt-get update -q
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing
