package fusefs_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// In the user namespace of these tests id 0 is shifted.
const shift = 100000

func shifted() *syscall.SysProcAttr {
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: shift, Size: 65536}}
	return &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
		Credential: &syscall.Credential{Uid: 0, Gid: 0}, Pdeathsig: unix.SIGKILL,
	}
}

// idmapped mounts dir on itself as a container's runtime does it for a volume: ids on disk are those in the user namespace.
func idmapped(t *testing.T, dir string) {
	t.Helper()
	holder := exec.Command("sleep", "1000")
	holder.SysProcAttr = shifted()
	for _, m := range []*[]syscall.SysProcIDMap{&holder.SysProcAttr.UidMappings, &holder.SysProcAttr.GidMappings} {
		*m = append(*m, syscall.SysProcIDMap{ContainerID: 65536, HostID: 0, Size: 1}) // what the tests make as root needs an id on disk
	}
	must(t, holder.Start())
	defer func() { _ = holder.Process.Kill(); _ = holder.Wait() }()
	ns, err := unix.Open(fmt.Sprintf("/proc/%d/ns/user", holder.Process.Pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer func() { _ = unix.Close(ns) }()
	m, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	must(t, err)
	defer func() { _ = unix.Close(m) }()
	if err := unix.MountSetattr(m, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns)}); err != nil {
		t.Skip("no idmapped mounts: ", err)
	}
	must(t, unix.MoveMount(m, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}

// What a container's shell in a user namespace does and sees, as its root and as a user of it.
const inside = `
exec 2>&1
umask 022
id -u
echo data >a; mkdir d; ln a hard; ln -s a soft; mkfifo p
stat -c '%n %u %g %a' a d hard soft p theirs alien
chown 5:6 a; chmod 4755 a; stat -c '%u %g %a' a
chown 7 theirs; stat -c '%u' theirs
chown 70000 a || echo no
chown 5 alien || echo no
chmod 600 alien || echo no
cat alien || echo no
echo x >>theirs; cat theirs
mknod c c 1 3 || echo no
chgrp 9 d; chmod 2775 d; touch d/in; stat -c '%u %g %a' d d/in
setpriv --reuid 5 --regid 6 --clear-groups sh -c 'id -u; echo more >>a; stat -c "%u %g %a %s" a; touch d/mine || echo no; touch mine || echo no; stat -c "%u %g %a" mine; chown 8 mine || echo no; rm theirs || echo no'
setpriv --reuid 20 --regid 20 --groups 9 sh -c 'touch d/ours && stat -c "%u %g %a" d/ours; chmod 777 a || echo no; rm -f a || echo no; cat a'
touch -d @5 theirs; stat -c '%Y' theirs
mv theirs d/; rm -r d; ls | sort
`

func TestSameInUserNamespace(t *testing.T) {
	for _, mapped := range []bool{true, false} {
		t.Run(fmt.Sprint("idmapped volume ", mapped), func(t *testing.T) {
			top := t.TempDir()
			for _, d := range []string{"/p", "/b"} {
				must(t, os.Mkdir(top+d, 0o777))
			}
			own := shift
			if mapped {
				own = 0
			}
			for _, d := range []string{"/p", "/b"} {
				must(t, os.Chmod(top+d, 0o1777))
				must(t, os.Chown(top+d, own, own))
				files := map[string]int{"/theirs": own + 3}
				if !mapped { // the layer cannot tell an id that an idmapped mount does not map from that of nobody
					files["/alien"] = 3000000
				}
				for name, id := range files {
					must(t, os.WriteFile(top+d+name, []byte("theirs\n"), 0o640))
					must(t, os.Chown(top+d+name, id, id))
				}
			}
			if mapped {
				idmapped(t, top)
			}
			b := over(t, setup{back: top + "/b"})
			for dir := top; dir != "/tmp"; dir = dir[:strings.LastIndexByte(dir, '/')] {
				if !mapped || dir != top {
					must(t, os.Chmod(dir, 0o755))
				}
			}
			var out [2][]string
			for i, dir := range []string{top + "/p", b.mnt} {
				cmd := exec.Command("sh", "-c", inside)
				cmd.Dir, cmd.SysProcAttr = dir, shifted()
				text, err := cmd.CombinedOutput()
				out[i] = append(strings.Split(string(text), "\n"), fmt.Sprint(err))
			}
			compare(t, "", out[0], out[1])
			compare(t, "below: ", tree(t, top+"/p"), tree(t, top+"/b"))
			if testing.Verbose() {
				t.Log(strings.Join(out[1], "\n"))
			}
		})
	}
}
