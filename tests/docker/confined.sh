#!/bin/sh
# A command as in its container: another user, no capabilities and no way to new ones, a /tmp of its own, and a file
# system that is read-only but for that and what the user owns below FOLDER, which has the users' passwd and an empty
# .hold. Needs root, and `unshare --mount` before it.
# Usage: confined.sh UID FOLDER TMP SEEN... -- COMMAND...
set -eu
uid=$1 folder=$2 tmp=$3
shift 3

# What the command must see may lie in a home that only its owner enters, or in /tmp: there it is all that is seen.
hold=$folder/.hold
mount --make-rprivate /
mount --bind "$folder" "$folder"
mount -t tmpfs -o mode=755 none "$hold"
number=0
while [ "$1" != -- ]; do
  above=$1
  while [ "$above" != / ]; do
    above=$(dirname "$above")
    case $(stat -c '%A %n' "$above") in
      *[xt]' /tmp') ;;
      *[xt]' '*) continue ;;
    esac
    number=$((number + 1))
    mkdir "$hold/$number"
    mount --bind "$1" "$hold/$number"
    echo "$above" > "$hold/$number.above"
    echo "$1" > "$hold/$number.seen"
  done
  shift
done
shift
mount --bind "$tmp" /tmp
mount --bind "$folder/passwd" /etc/passwd
for above in $(cat "$hold"/*.above 2> /dev/null | sort -u); do
  [ "$above" = /tmp ] || mount -t tmpfs -o mode=755 none "$above"
done
while [ "$number" -gt 0 ]; do
  seen=$(cat "$hold/$number.seen")
  mkdir -p "$seen"
  mount --bind "$hold/$number" "$seen"
  number=$((number - 1))
done
mount -o remount,ro,bind /
cd "$PWD"  # which was below the mounts made here
exec setpriv --reuid="$uid" --regid="$uid" --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all \
  --ambient-caps=-all "$@"
