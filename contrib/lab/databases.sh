# shellcheck shell=bash
# Sourced by lab.sh: the images lab.local/postgres:1 and lab.local/redis:1, each
# the programs of Debian's packages with the libraries that they load, and
# busybox. What this machine does not have is taken out of packages that are
# downloaded and never installed: no service is started on it.

POSTGRES_IMAGE=lab.local/postgres:1
REDIS_IMAGE=lab.local/redis:1
DATABASE_UID=999      # who the databases run as
DEBS=$LAB/debs        # packages that this machine does not have, and what is in them

# newest FILE...: the last in the order of versions of those that are there.
newest() { local f; for f; do [ ! -e "$f" ] || echo "$f"; done | sort -V | tail -n 1; }

# The folder with initdb, postgres and the rest; empty when there is none.
postgres_bin() { dirname "$(newest {,"$DEBS/root"}/usr/lib/postgresql/*/bin/postgres)" | grep -vx . || true; }

# The one program that is redis-server, redis-check-aof and redis-check-rdb by its name; empty when there is none.
redis_program() { newest {,"$DEBS/root"}/usr/bin/redis-check-rdb; }

have_databases() { [ -n "$(postgres_bin)" ] && [ -n "$(redis_program)" ] && { [ -x /usr/bin/redis-cli ] || [ -x "$DEBS/root/usr/bin/redis-cli" ]; }; }

# fetch_databases: unpacks Debian's packages, and those that they need and this machine does not have.
fetch_databases() {
  if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
    echo "no PostgreSQL or Redis here, and no apt-get to fetch them: install both (as Debian's packages postgresql, redis-tools)"
    return 1
  fi
  local f get=(apt-get -qq -y --no-install-recommends --download-only -o "Dir::Cache::archives=$DEBS/archives" -o Debug::NoLocking=1
    install postgresql redis-tools)
  rm -rf "$DEBS"
  mkdir -p "$DEBS/archives/partial" "$DEBS/root"
  # the package lists may be absent or old on a fresh machine
  "${get[@]}" || { apt-get -qq update && "${get[@]}"; }
  for f in "$DEBS"/archives/*.deb; do
    [ ! -e "$f" ] || dpkg-deb -x "$f" "$DEBS/root"
  done
  rm -r "$DEBS/archives"
  have_databases || { echo "the packages do not hold the programs that are looked for"; return 1; }
}

# inside_path FILE: where a file of the machine, or of an unpacked package, lies in the image.
inside_path() { echo "${1#"$DEBS/root"}"; }

# add_file ROOTFS FILE...: copies files to their places, links followed.
add_file() {
  local root=$1 f to
  shift
  for f; do
    to=$root$(inside_path "$f")
    [ -e "$to" ] || { mkdir -p "${to%/*}" && cp -L --preserve=mode "$f" "$to"; }
  done
}

# add_libraries ROOTFS FILE...: copies the shared libraries that programs and libraries load.
add_libraries() {
  local root=$1 libs found
  shift
  libs=$(printf '%s:' "$DEBS"/root/{,usr/}lib/*-linux-gnu)
  # as `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, and the loader without an arrow
  found=$(for f; do LD_LIBRARY_PATH=$libs ldd "$f"; done)
  if grep 'not found' <<<"$found"; then return 1; fi
  mapfile -t found < <(grep -o '/[^ ]* (0x' <<<"$found" | sed 's/ (0x$//' | sort -u)
  add_file "$root" "${found[@]}"
}

# start_root ROOTFS USER: a root with busybox and a user.
start_root() {
  local root=$1 applet
  rm -rf "$root"
  mkdir -p "$root"/{bin,sbin,proc,sys,dev,tmp,etc,run,root,usr/bin,usr/share/zoneinfo,data}
  chmod 1777 "$root"/{tmp,run}
  cp "$(command -v busybox)" "$root/bin/busybox"
  for applet in $("$root/bin/busybox" --list); do
    [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
  done
  printf 'root:x:0:0:root:/root:/bin/sh\n%s:x:%d:%d::/tmp:/bin/sh\n' "$2" "$DATABASE_UID" "$DATABASE_UID" >"$root/etc/passwd"
  printf 'root:x:0:\n%s:x:%d:\n' "$2" "$DATABASE_UID" >"$root/etc/group"
}

pack_postgres() {
  local root=$LAB/img/postgres bin lib share p
  bin=$(postgres_bin)
  lib=${bin%/bin}/lib
  share=${bin/lib\/postgresql/share\/postgresql}
  share=${share%/bin}
  start_root "$root" postgres
  for p in initdb postgres pg_ctl psql pgbench pg_amcheck pg_checksums pg_controldata pg_isready; do
    add_file "$root" "$bin/$p"
    ln -s "$(inside_path "$bin")/$p" "$root/usr/bin/$p" # it finds its own files from where the link leads
  done
  for p in "$lib"/*.so; do
    case $p in */llvmjit*) ;; *) add_file "$root" "$p" ;; esac # the compiler of queries is 100 MB
  done
  mkdir -p "$root$(inside_path "$share")"
  cp -rL "$share/." "$root$(inside_path "$share")"
  rm -rf "$root$(inside_path "$share")"/man
  add_libraries "$root" "$bin"/{initdb,postgres,psql,pgbench} "$root$(inside_path "$lib")"/*.so
  # -k: pages have checksums. Peers are trusted: who reaches the socket is in the container, or its tester.
  cat >"$root/usr/bin/postgres-start" <<'SH'
#!/bin/sh
# Makes the data directory $PGDATA unless there is one, and runs the server with the given options.
set -eu
[ -s "$PGDATA/PG_VERSION" ] || initdb -k --locale=C --encoding=UTF8 --auth=trust --username=postgres >/dev/null
exec postgres -k /run "$@"
SH
  chmod 755 "$root/usr/bin/postgres-start"
  pack "$root" "$POSTGRES_IMAGE" "$LAB/img/postgres.tar" \
    '{"Entrypoint": ["postgres-start"], "User": "postgres", "Env": ["PGDATA=/data/db", "PGHOST=/run", "PGUSER=postgres"]}'
  rm -r "$root"
}

pack_redis() {
  local root=$LAB/img/redis program name
  program=$(redis_program)
  start_root "$root" redis
  for name in redis-server redis-check-aof redis-check-rdb; do
    install -D -m 755 "$program" "$root/usr/bin/$name"
  done
  add_file "$root" "$(newest {,"$DEBS/root"}/usr/bin/redis-cli)"
  add_libraries "$root" "$program" "$root/usr/bin/redis-cli"
  pack "$root" "$REDIS_IMAGE" "$LAB/img/redis.tar" '{"Cmd": ["redis-server"], "User": "redis"}'
  rm -r "$root"
}

# database_images: makes both images, once.
database_images() {
  "$HERE/packages.sh" lab
  mkdir -p "$LAB"/{img,log,stamps}
  have_databases || step databases fetch_databases
  local recipe=$HERE/databases.sh
  once postgres "$POSTGRES_IMAGE $(cat "$recipe" "$(postgres_bin)/postgres" | sha256sum | cut -c1-16)" "$LAB/img/postgres.tar" pack_postgres
  once redis "$REDIS_IMAGE $(cat "$recipe" "$(redis_program)" | sha256sum | cut -c1-16)" "$LAB/img/redis.tar" pack_redis
}
