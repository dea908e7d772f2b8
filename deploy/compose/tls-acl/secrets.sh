#!/bin/sh
# Creates the files for tls-acl.yml in the folder secrets/ next to this script: a CA, a certificate for Redis and one for its
# clients. Passwords are written to .env, which Compose reads, and their hashes to users.acl, which Redis reads.
#
#   sh deploy/compose/tls-acl/secrets.sh [NAME OR ADDRESS OF THE SERVER]...
#
# Existing files and passwords are kept. To replace one, delete its file, or its line in .env, and run this again.
set -eu
cd "$(dirname "$0")"
env=../../../.env
days=365

# The first folder keeps out other users of this machine. Below it everyone can read, because Redis and Celery run as other
# users in their containers.
umask 077
mkdir -p secrets
touch "$env"
umask 022
mkdir -p secrets/redis secrets/clients
cd secrets
env=../$env

key() {
    (umask 077 && openssl ecparam -name prime256v1 -genkey -noout -out "$1")
}

certificate() { # FILE, USE, NAMES
    [ -e "$1.pem" ] && return
    key "$1.key"
    chmod 644 "$1.key"
    printf 'extendedKeyUsage=%s\nsubjectAltName=%s\n' "$2" "$3" >extensions
    openssl req -new -key "$1.key" -subj "/CN=$(basename "$1")" |
        openssl x509 -req -CA ca.pem -CAkey ca.key -CAcreateserial -days "$days" -extfile extensions -out "$1.pem"
    rm extensions
}

if [ ! -e ca.pem ]; then
    key ca.key
    openssl req -x509 -new -key ca.key -days 3650 -subj "/CN=bridge authority" -out ca.pem
fi
names=DNS:redis
for name; do
    case $name in
    *[!0-9.]*) names=$names,DNS:$name ;;
    *) names=$names,IP:$name ;;
    esac
done
certificate redis/redis clientAuth,serverAuth "$names"
certificate clients/client clientAuth DNS:client
cp ca.pem redis/
cp ca.pem clients/

grep -v '^#' ../users.acl >redis/users.acl
for user in worker tasks publisher operator admin; do
    variable=$(echo "$user" | tr '[:lower:]' '[:upper:]')_PASSWORD
    grep -q "^$variable=" "$env" || echo "$variable=$(openssl rand -hex 24)" >>"$env"
    hash=$(sed -n "s/^$variable=//p" "$env" | tr -d '\n' | openssl dgst -sha256 -r | cut -c -64)
    sed "s/<$user>/$hash/" redis/users.acl >users.acl
    cat users.acl >redis/users.acl
done
rm users.acl
