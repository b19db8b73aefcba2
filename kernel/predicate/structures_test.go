package predicate_test

import (
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/kernel/predicate"
	"github.com/faultgraft/faultgraft/test/vm"
)

// mkdirs makes directories: B bananas (mode 0750), S bananasplit (0700), A apples (0555), L a long name (0711).
func mkdirs(t *testing.T, dir string) []action {
	long := strings.Repeat("x", 62) + "yz" + strings.Repeat("w", 100)
	mk := func(name string, mode uint32) func() error {
		return func() error {
			path := filepath.Join(dir, name)
			if err := unix.Mkdir(path, mode); err != nil {
				return err
			}
			return unix.Rmdir(path)
		}
	}
	unix.Umask(0)
	return []action{
		{"B", mk("bananas", 0o750)}, {"S", mk("bananasplit", 0o700)}, {"A", mk("apples", 0o555)}, {"L", mk(long, 0o711)},
	}
}

func mkdirCases(t *testing.T, dir string) map[string]string {
	var st, parent unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	if err := unix.Stat(filepath.Dir(dir), &parent); err != nil {
		t.Fatal(err)
	}
	w, x := strings.Repeat("w", 100), strings.Repeat("x", 62)
	ino, other := fmt.Sprint(st.Ino), fmt.Sprint(st.Ino+1)
	return map[string]string{
		// strings
		`dentry->d_name.name == "bananas"`:                         "B",
		`"bananas" == dentry->d_name.name`:                         "B",
		`dentry->d_name.name != "bananas"`:                         "SAL",
		`!(dentry->d_name.name == "bananas")`:                      "SAL",
		`dentry->d_name.name startswith "bananas"`:                 "BS",
		`startswith(dentry->d_name.name, "banana")`:                "BS",
		`!(dentry->d_name.name startswith "b")`:                    "AL",
		`STRNCMP(dentry->d_name.name, "bananas", 8)`:               "B",
		`STRNCMP(dentry->d_name.name, "bananas", 7)`:               "BS",
		`STRNCMP(dentry->d_name.name, "bananas", 100)`:             "B",
		`!STRNCMP(dentry->d_name.name, "bananas", 8)`:              "SAL",
		`STRCMP(dentry->d_name.name, "bananas")`:                   "B",
		`dentry->d_name.name == ""`:                                "",
		`dentry->d_name.name != ""`:                                "BSAL",
		`dentry->d_name.name == "\x62\141nanas"`:                   "B",
		`dentry->d_name.name == "ban" "anas"`:                      "B",
		`dentry->d_name.name == "` + x + `yz` + w + `"`:            "L",
		`dentry->d_name.name == "` + x + `yz` + w[:99] + `"`:       "",
		`dentry->d_name.name == "` + x + `yz` + w[:99] + `v"`:      "",
		`dentry->d_name.name startswith "` + x + `y"`:              "L", // ends with the first piece
		`dentry->d_name.name == "` + x + `y"`:                      "",
		`dentry->d_name.name startswith "` + x + `yz"`:             "L",
		`dentry->d_name.name startswith "` + x + `zz"`:             "",
		`dentry->d_sb->s_type->name == "tmpfs"`:                    "BSAL",
		`dentry->d_sb->s_id == "tmpfs"`:                            "BSAL", // an array
		`dentry->d_sb->s_id startswith "tmp"`:                      "BSAL",
		`dentry->d_sb->s_id[0] == 't' && dentry->d_sb->s_id[5]==0`: "BSAL",
		`dentry->d_name.name[0] == 'b'`:                            "BS",
		`*dentry->d_name.name == 'a'`:                              "A",
		`dentry->d_name.name[6] == '\0'`:                           "A",
		// numbers of each width
		`mode == 0750`:                       "B",
		`mode == 0x1e8 || mode == 365`:       "BA",
		`mode != 0700`:                       "BAL",
		`mode < 0700`:                        "A",
		`mode <= 0700`:                       "SA",
		`mode > 0700`:                        "BL",
		`mode >= 0700`:                       "BSL",
		`0700 < mode`:                        "BL",
		`(mode & 0050) == 0050`:              "BA",
		`mode & 0001`:                        "AL",
		`!(mode & 0001)`:                     "BS",
		`(mode & ~0700) != 0`:                "BAL",
		`(mode | 0777) == 0777`:              "BSAL",
		`(mode ^ 0777) == 0222`:              "A",
		`mode + 1 == 0751`:                   "B",
		`mode - 0700 < 0`:                    "A",
		`-mode < -0700`:                      "BL",
		`mode >> 6 == 7`:                     "BSL",
		`mode << 3 == 07500`:                 "B",
		`(mode & 7) == (mode >> 3 & 7)`:      "SAL",
		`(mode >> 6 & 7) - (mode & 7) == 7`:  "BS",
		`dir->i_ino == ` + ino:               "BSAL",
		`dir->i_ino == ` + other:             "",
		`dir->i_ino != ` + other + ` && dir`: "BSAL",
		`dir.i_ino < ` + other:               "BSAL",
		`dentry->d_parent->d_inode->i_ino == dir->i_ino`:          "BSAL",
		`dentry->d_parent.d_inode == dir`:                         "BSAL",
		`dentry->d_parent->d_name.len == dentry->d_name.len`:      "",
		`dentry->d_name.len == 7`:                                 "B",
		`dentry->d_name.len - 7 == mode - 0750`:                   "B",
		`dentry->d_name.len >= 7 && dentry->d_name.len <= 11`:     "BS",
		`dir->i_mode & 0170000`:                                   "BSAL",
		`(dir->i_mode & S_IFMT) == S_IFDIR`:                       "BSAL",
		`dir->i_uid.val == 0`:                                     "BSAL",
		`dir->i_sb->s_time_min < 0 || dir->i_sb->s_time_min >= 0`: "BSAL",
		`dir->i_sb->s_magic == 0x01021994`:                        "BSAL", // TMPFS_MAGIC
		`dir->i_size >= -1`:                                       "BSAL",
		`dir->i_mapping->host == dir`:                             "BSAL",
		`dir->i_mapping->host->i_sb.s_root->d_sb == dir->i_sb`:    "BSAL",
		// NULL and reads that fail
		`dentry->d_inode == NULL`:                     "BSAL", // not made yet
		`!dentry->d_inode`:                            "BSAL",
		`dentry->d_inode`:                             "",
		`dentry->d_inode == 0`:                        "BSAL",
		`dentry->d_inode->i_ino == 5`:                 "",
		`!(dentry->d_inode->i_ino == 5)`:              "",
		`dentry->d_inode->i_ino != 5`:                 "",
		`dentry->d_inode->i_ino == 5 || true`:         "BSAL",
		`dentry->d_inode->i_ino == 5 || mode == 0750`: "",
		`mode == 0750 || dentry->d_inode->i_ino == 5`: "B",
		`dentry->d_inode != NULL && dentry->d_inode->i_ino == 5 || mode == 0750`: "B",
		`dentry->d_inode->i_sb->s_id == "tmpfs"`:                                 "",
		`dentry->d_inode->i_sb->s_id != "tmpfs"`:                                 "",
		`dentry->d_fsdata == NULL`:                                               "BSAL",
		// logic
		`mode == 0750 && dentry->d_name.name == "bananas"`:                            "B",
		`mode == 0750 && dentry->d_name.name == "apples"`:                             "",
		`mode == 0700 || dentry->d_name.name == "bananas"`:                            "BS",
		`!(mode == 0700 || dentry->d_name.name == "bananas")`:                         "AL",
		`!(mode == 0750 && dentry->d_name.name == "bananas")`:                         "SAL",
		`(mode == 0750 || mode == 0700) && (dentry->d_name.len == 7 || mode == 0555)`: "B",
		`!!(mode == 0750)`:              "B",
		`mode == 0750 && true || false`: "B",
		`(true)`:                        "BSAL",
		// bool, enum, bit fields, arrays, anonymous members: see TestStructures for more
		`dir->i_sb->s_writers.frozen == SB_UNFROZEN`:     "BSAL",
		`dir->i_sb->s_writers.frozen != SB_FREEZE_WRITE`: "BSAL",
		`arg1 == dir && arg2->d_name.name == "apples"`:   "A",
		`arg3 == 0555`:                                             "A",
		`dir->i_rdev == 0 && dir->i_nlink >= 2`:                    "BSAL", // i_nlink: in an anonymous union
		`dir->i_sb->s_uuid.b[0] == dir->i_sb->s_uuid.b[1] || true`: "BSAL",
	}
}

// TestMkdir compares numbers, strings and pointers of real dentries and inodes.
func TestMkdir(t *testing.T) {
	vm.Need(t)
	dir := t.TempDir()
	for _, way := range []string{"kprobe", "fentry"} {
		t.Run(way, func(t *testing.T) {
			observe(t, probe{function: "vfs_mkdir", way: way}, mkdirs(t, dir), mkdirCases(t, dir))
		})
	}
	t.Run("lsm", func(t *testing.T) { // has no first parameter for the idmap
		cases := map[string]string{}
		for text, want := range mkdirCases(t, dir) {
			if !strings.HasPrefix(text, "arg") {
				cases[text] = want
			}
		}
		cases[`arg0 == dir && arg2 == 0555`] = "A"
		observe(t, probe{function: "bpf_lsm_inode_mkdir", way: "lsm"}, mkdirs(t, dir), cases)
	})
}

// TestMount compares the arguments of a system call, in user space and copied.
func TestMount(t *testing.T) {
	vm.Need(t)
	dir := t.TempDir()
	mount := func(source, data string, flags uintptr) func() error {
		return func() error {
			if err := unix.Mount(source, dir, "tmpfs", flags, data); err != nil {
				return err
			}
			return unix.Unmount(dir, 0)
		}
	}
	actions := []action{
		{"R", mount("none", "", unix.MS_RDONLY)}, {"N", mount("disk", "size=64k", unix.MS_NOSUID|unix.MS_NODEV)},
		{"0", mount("none", "size=32k", 0)},
	}
	same := map[string]string{
		`flags & 1`:                                     "R",
		`(flags & MS_RDONLY) != 0`:                      "R",
		`(flags & (MS_NOSUID | MS_NODEV)) == 6`:         "N",
		`(flags & 0xffff) == 0`:                         "0",
		`dev_name == "none"`:                            "R0",
		`dev_name startswith "di"`:                      "N",
		`data_page startswith "size="`:                  "N0",
		`data_page == "size=64k"`:                       "N",
		`dev_name != "none"`:                            "N",
		`dev_name == "none" && data_page == "size=32k"`: "0",
		`type_page == "tmpfs"`:                          "RN0",
		`dev_name[0] == 'n'`:                            "R0",
		`dev_name == NULL`:                              "",
	}
	for _, way := range []string{"kprobe", "fentry"} {
		t.Run("path_mount "+way, func(t *testing.T) {
			observe(t, probe{function: "path_mount", way: way}, actions, same)
		})
	}
	params, err := predicate.SyscallParams(spec(t), "mount", runtime.GOARCH)
	if err != nil {
		t.Fatal(err)
	}
	user := map[string]string{`dir_name == "` + dir + `"`: "RN0", `arg4 startswith "size=6"`: "N", `data == NULL`: "R"}
	for text, want := range same {
		text = strings.ReplaceAll(strings.ReplaceAll(text, "data_page", "data"), "type_page", "type")
		user[text] = want
	}
	for _, way := range []string{"kprobe", "fentry"} {
		t.Run("syscall "+way, func(t *testing.T) {
			// Go passes NULL for empty data
			observe(t, probe{function: "__x64_sys_mount", way: way, params: params, syscall: true}, actions, user)
		})
	}
	t.Run("lsm", func(t *testing.T) {
		lsm := map[string]string{}
		for text, want := range same {
			text = strings.ReplaceAll(strings.ReplaceAll(text, "data_page", "data"), "type_page", "type")
			lsm[text] = want
		}
		lsm[`path->dentry->d_name.name == "`+filepath.Base(dir)+`"`] = "RN0"
		observe(t, probe{function: "bpf_lsm_sb_mount", way: "lsm"}, actions, lsm)
	})
}

// TestWrite compares what write(2) passes: a buffer in user space, a position, flags.
func TestWrite(t *testing.T) {
	vm.Need(t)
	dir := t.TempDir()
	open := func(name string, flags int) int {
		fd, err := unix.Open(filepath.Join(dir, name), flags|unix.O_CREAT|unix.O_CLOEXEC, 0o640)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Close(fd); err != nil {
				t.Error(err)
			}
		})
		return fd
	}
	a, b := open("alpha", unix.O_RDWR|unix.O_TRUNC), open("beta.log", unix.O_WRONLY|unix.O_APPEND)
	write := func(fd int, text string, at int64) func() error {
		return func() error {
			_, err := unix.Pwrite(fd, []byte(text), at)
			return err
		}
	}
	actions := []action{
		{"H", write(a, "hello world", 0)}, {"F", write(a, "hello", 1<<33)}, {"L", write(b, "line\n", 5)},
	}
	cases := map[string]string{
		`file->f_path.dentry->d_name.name == "alpha"`: "HF",
		`file->f_inode->i_mode == (S_IFREG | 0640)`:   "HFL",
		`(file->f_flags & O_ACCMODE) == O_RDWR`:       "HF",
		`file->f_flags & O_APPEND`:                    "L",
		`buf startswith "hello"`:                      "HF",
		`buf startswith "line\n"`:                     "L",
		`buf[4] == 'o' && count == 11`:                "H",
		`count == 5`:                                  "FL",
		`*pos == 0`:                                   "H",
		`*pos > 0xffffffff`:                           "F",
		`*pos - 0x200000000 == 0`:                     "F",
		`pos[0] > count`:                              "F",
		`pos && *pos >= 0`:                            "HFL",
		`file->f_inode->i_sb->s_type->name == "tmpfs" && !(file->f_flags & O_SYNC)`: "HFL",
		`file->f_mapping->host == file->f_inode`:                                    "HFL",
		`file->f_inode->i_size >= 0 && file->f_inode->i_size < 0x4000000000`:        "HFL",
		`file->f_op->write_iter`:                                                    "HFL", // a pointer to a function
	}
	for _, way := range []string{"kprobe", "fentry"} {
		t.Run(way, func(t *testing.T) { observe(t, probe{function: "vfs_write", way: way}, actions, cases) })
	}
	for _, call := range []string{"pwrite64"} {
		params, err := predicate.SyscallParams(spec(t), call, runtime.GOARCH)
		if err != nil {
			t.Fatal(err)
		}
		p := probe{function: "__x64_sys_" + call, way: "kprobe", params: params, syscall: true}
		t.Run(call, func(t *testing.T) {
			observe(t, p, actions, map[string]string{
				`buf startswith "hello"`:     "HF",
				`count == 5 && pos == 5`:     "L",
				`pos > 0xffffffff`:           "F",
				`fd == ` + fmt.Sprint(b):     "L",
				`fd != ` + fmt.Sprint(b):     "HF",
				`arg2 >= 5 && arg2 <= 10`:    "FL",
				`buf != NULL && buf[0]=='l'`: "L",
			})
		})
	}
}

// TestLookup is the example of Chaos Mesh's KernelChaos, with its parameters.
func TestLookup(t *testing.T) {
	vm.Need(t)
	dir := t.TempDir()
	look := func(name string) func() error {
		return func() error {
			var st unix.Stat_t
			if err := unix.Stat(filepath.Join(dir, name), &st); err != unix.ENOENT {
				return fmt.Errorf("stat: %v", err)
			}
			return nil
		}
	}
	params, err := predicate.ParseParams(spec(t), "d_alloc_parallel", "struct dentry *dir, const struct qstr *file")
	if err != nil {
		t.Fatal(err)
	}
	for _, way := range []string{"kprobe", "fentry"} {
		t.Run(way, func(t *testing.T) {
			observe(t, probe{function: "d_alloc_parallel", way: way, params: params},
				[]action{{"B", look("bananas")}, {"S", look("bananasplit")}, {"A", look("apples")}},
				map[string]string{
					`STRNCMP(file->name, "bananas", 8)`:              "B",
					`STRNCMP(name->name, "bananas", 7)`:              "BS", // BTF's own name
					`file->len == 6 && dir == parent`:                "A",
					`file->hash_len >> 32 == 11`:                     "S", // in an anonymous union
					`dir->d_inode->i_opflags & 1 || file->len <= 11`: "BSA",
				})
		})
	}
}

// TestOpen compares strings that the program passes, before the kernel has copied them.
func TestOpen(t *testing.T) {
	vm.Need(t)
	dir := t.TempDir()
	params, err := predicate.SyscallParams(spec(t), "openat", runtime.GOARCH)
	if err != nil {
		t.Fatal(err)
	}
	open := func(name string, flags int) func() error {
		return func() error {
			fd, err := unix.Open(name, flags|unix.O_CLOEXEC, 0o600)
			if err != nil {
				return err
			}
			return unix.Close(fd)
		}
	}
	actions := []action{{"C", open(dir+"/new", unix.O_CREAT|unix.O_WRONLY)}, {"D", open(dir, unix.O_DIRECTORY)}, {"N", open("/dev/null", unix.O_RDONLY)}}
	cases := map[string]string{
		`filename startswith "/dev/"`:                                  "N",
		`filename == "` + dir + `/new"`:                                "C",
		`flags & O_CREAT`:                                              "C",
		`flags & O_DIRECTORY`:                                          "D",
		`dfd == AT_FDCWD && (flags & O_CREAT) == 0`:                    "DN",
		`flags & O_CREAT && mode == 0600 && filename != "` + dir + `"`: "C",
		`(flags & O_ACCMODE) == O_WRONLY && dfd < 0`:                   "C",
		`filename[0] == '/' && !(filename == "/dev/null")`:             "CD",
	}
	for _, way := range []string{"kprobe", "fentry"} {
		t.Run(way, func(t *testing.T) {
			observe(t, probe{function: "__x64_sys_openat", way: way, params: params, syscall: true}, actions, cases)
		})
	}
	t.Run("openat2", func(t *testing.T) { // a struct in user space
		params, err := predicate.SyscallParams(spec(t), "openat2", runtime.GOARCH)
		if err != nil {
			t.Fatal(err)
		}
		actions := []action{{"N", func() error {
			fd, err := unix.Openat2(unix.AT_FDCWD, "/dev/null", &unix.OpenHow{Flags: unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS})
			if err != nil {
				return err
			}
			return unix.Close(fd)
		}}}
		observe(t, probe{function: "__x64_sys_openat2", way: "kprobe", params: params, syscall: true}, actions, map[string]string{
			`how->resolve == 4 && how->flags & O_CLOEXEC`: "N", `how->resolve == 0`: "",
		})
	})
}
