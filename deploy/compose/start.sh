#!/bin/sh
# Starts a Redis or a Sentinel, which writes its state, such as the current primary, into its configuration. The first start
# creates its copy of the configuration next to its data, own.conf, with the values of ${HOSTNAME} and ${BUS_PASSWORD}, as a
# replica if ${REPLICA_OF} is set.
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
