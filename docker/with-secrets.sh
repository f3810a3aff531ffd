#!/bin/sh
# For programs that take secrets only from their environment: NAME__FILE=PATH becomes NAME=(what PATH holds), then the
# command runs in place of this shell.
set -eu
for name in $(env | sed -n 's/^\([A-Z][A-Z0-9_]*\)__FILE=.*/\1/p'); do
  eval "path=\${${name}__FILE}"
  value=$(cat "$path")
  export "$name=$value"
  unset "${name}__FILE"
done
exec "$@"
