#!/bin/sh
# Starts a Redis or a Sentinel that writes into its configuration what it finds out, such as who is the primary: on the
# first start it gets a copy of its own, next to its data, with the values of ${HOSTNAME} and ${BUS_PASSWORD}, and as a
# replica if there is ${REPLICA_OF}.
#
#   start.sh CONFIGURATION [OPTION]...
set -eu
configuration=$1
shift
cd /data
if [ ! -e own.conf ]; then
    sed "s/\${HOSTNAME}/$HOSTNAME/; s/\${BUS_PASSWORD}/$BUS_PASSWORD/" "$configuration" >new.conf
    [ -z "${REPLICA_OF-}" ] || echo "replicaof $REPLICA_OF" >>new.conf
    mv new.conf own.conf
fi
exec redis-server own.conf "$@"
