# shellcheck shell=bash
# Sourced by lab.sh: builds containerd, its shim, ctr, runc and nerdctl into
# $LAB/bin, and the two images into $LAB/img. Each result carries a stamp, so
# that a second run does nothing.

# step NAME COMMAND...: runs COMMAND with its output in a log file and shows that time passes.
step() {
  local name=$1 log=$LAB/log/build-$1.log start=$SECONDS last=0 pid
  shift
  "$@" >"$log" 2>&1 </dev/null &
  pid=$!
  # Ctrl-C ends this script, and the compiler with it
  trap 'kill "$pid" 2>/dev/null || true' INT TERM
  while kill -0 "$pid" 2>/dev/null; do
    if [ -t 2 ]; then
      printf '\r  %-12s %4d s' "$name" $((SECONDS - start)) >&2
    elif [ $((SECONDS - start - last)) -ge 20 ]; then
      last=$((SECONDS - start))
      printf '  %-12s %4d s ...\n' "$name" "$last" >&2
    fi
    sleep 0.2
  done
  trap - INT TERM
  if ! wait "$pid"; then
    [ ! -t 2 ] || echo >&2
    tail -n 20 "$log" >&2
    die "building $name failed after $((SECONDS - start)) s: the whole output is in $log"
  fi
  [ ! -t 2 ] || printf '\r' >&2
  printf '  %-12s %4d s, done\n' "$name" $((SECONDS - start)) >&2
}

# built NAME STAMP OUTPUT: is OUTPUT there and made from what STAMP says?
built() { [ -e "$3" ] && [ "$(cat "$LAB/stamps/$1" 2>/dev/null)" = "$2" ]; }

# once NAME STAMP OUTPUT COMMAND...: runs COMMAND unless OUTPUT is up to date.
once() {
  local name=$1 stamp=$2 out=$3
  shift 3
  ! built "$name" "$stamp" "$out" || return 0
  step "$name" "$@"
  echo "$stamp" >"$LAB/stamps/$name"
}

go_install() { # CGO PACKAGE@VERSION [FLAG...]
  local cgo=$1 pkg=$2
  shift 2
  # away from any go.mod; a user's GOBIN, GOOS and -mod flags are not for these programs
  cd / && env -u GOOS -u GOARCH GOFLAGS=-buildvcs=false GOBIN="$LAB/bin" CGO_ENABLED="$cgo" \
    go install -trimpath -ldflags '-s -w' "$@" "$pkg"
}

# nerdctl cannot be had by `go install pkg@version`: its go.mod has a local
# replace. A module of our own requires it; its test-only module tigron is not
# published, and the one interface of it that is compiled in stands here.
build_nerdctl() {
  local src=$LAB/src/nerdctl
  mkdir -p "$src" "$LAB/src/tigron/tig"
  printf 'module github.com/containerd/nerdctl/mod/tigron\n\ngo 1.24\n' >"$LAB/src/tigron/go.mod"
  printf 'package tig\n\ntype T interface {\n\tHelper()\n\tFailNow()\n\tFail()\n\tLog(args ...any)\n\tName() string\n\tTempDir() string\n}\n' \
    >"$LAB/src/tigron/tig/tig.go"
  printf 'module faultgraft.lab/nerdctl\n\ngo 1.26.3\n\nrequire github.com/containerd/nerdctl/v2 %s\n\nreplace github.com/containerd/nerdctl/mod/tigron => ../tigron\n' \
    "$NERDCTL" >"$src/go.mod"
  rm -f "$src/go.sum"
  cd "$src" && env -u GOOS -u GOARCH GOFLAGS=-buildvcs=false CGO_ENABLED=0 go build -mod=mod -trimpath \
    -ldflags "-s -w -X github.com/containerd/nerdctl/v2/pkg/version.Version=$NERDCTL" \
    -o "$LAB/bin/nerdctl" github.com/containerd/nerdctl/v2/cmd/nerdctl
}

build() {
  local c=github.com/containerd/containerd/v2/cmd p
  "$HERE/packages.sh" lab
  "$TREE/contrib/ci/need-go"
  mkdir -p "$LAB"/{bin,log,stamps,img}
  if ! built containerd "$CONTAINERD" "$LAB/bin/containerd" || ! built nerdctl "$NERDCTL" "$LAB/bin/nerdctl"; then
    echo "building the lab into $LAB (5 to 10 minutes the first time)" >&2
  fi
  for p in containerd containerd-shim-runc-v2 ctr; do
    once "${p/containerd-shim-runc-v2/shim}" "$CONTAINERD" "$LAB/bin/$p" go_install 0 "$c/$p@$CONTAINERD"
  done
  # without seccomp runc refuses nerdctl's default profile
  once runc "$RUNC" "$LAB/bin/runc" go_install 1 "github.com/opencontainers/runc@$RUNC" -tags seccomp
  once nerdctl "$NERDCTL" "$LAB/bin/nerdctl" build_nerdctl
}

# pack ROOTFS NAME:TAG OUT CONFIG: an image of one layer in the format of `docker save`. CONFIG is JSON: Cmd, Entrypoint, User, Env.
pack() {
  local w arch diff
  case $(uname -m) in x86_64) arch=amd64 ;; aarch64) arch=arm64 ;; *) arch=$(uname -m) ;; esac
  w=$(mktemp -d "$LAB/img/pack.XXXXXX")
  tar -C "$1" --sort=name --numeric-owner --owner=0 --group=0 --mtime=@0 -cf "$w/layer.tar" .
  diff=$(sha256sum "$w/layer.tar" | cut -d' ' -f1)
  jq -cn --arg a "$arch" --arg d "sha256:$diff" --argjson c "$4" \
    '{architecture: $a, os: "linux", created: "2026-01-01T00:00:00Z",
      config: ($c + {Env: (["PATH=/usr/sbin:/usr/bin:/sbin:/bin"] + $c.Env)}),
      rootfs: {type: "layers", diff_ids: [$d]}}' >"$w/config.json"
  jq -cn --arg n "$2" '[{Config: "config.json", RepoTags: [$n], Layers: ["layer.tar"]}]' >"$w/manifest.json"
  tar -C "$w" -cf "$3" manifest.json config.json layer.tar
  rm -r "$w"
}

pack_busybox() {
  local root=$LAB/img/busybox applet
  rm -rf "$root"
  mkdir -p "$root"/{bin,proc,sys,dev,tmp,etc,data,root,run}
  chmod 1777 "$root/tmp"
  cp "$(command -v busybox)" "$root/bin/busybox"
  for applet in $("$root/bin/busybox" --list); do
    [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
  done
  echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
  echo 'root:x:0:' >"$root/etc/group"
  pack "$root" "$BUSYBOX_IMAGE" "$LAB/img/busybox.tar" '{"Cmd": ["/bin/sh"]}'
  rm -r "$root"
}

# The pod's sandbox container: waits for a signal, and reaps nothing because each container has its own PID namespace.
pack_pause() {
  local root=$LAB/img/pause
  mkdir -p "$root"
  gcc -static -Os -s -x c - -o "$root/pause" <<'C'
#include <signal.h>
#include <unistd.h>
static void quit(int s) { (void)s; _exit(0); }
int main(void) {
	signal(SIGTERM, quit);
	signal(SIGINT, quit);
	for (;;)
		pause();
}
C
  pack "$root" "$PAUSE_IMAGE" "$LAB/img/pause.tar" '{"Entrypoint": ["/pause"]}'
  rm -r "$root"
}

image() {
  "$HERE/packages.sh" lab
  mkdir -p "$LAB"/{img,log,stamps}
  once busybox "$BUSYBOX_IMAGE $(sha256sum "$(command -v busybox)" | cut -c1-16)" "$LAB/img/busybox.tar" pack_busybox
  once pause "$PAUSE_IMAGE" "$LAB/img/pause.tar" pack_pause
}
