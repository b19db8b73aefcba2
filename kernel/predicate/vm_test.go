package predicate_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/kernel/predicate"
	"github.com/faultgraft/faultgraft/test/vm"
)

// probe is a kernel function with a way to see it called.
type probe struct {
	function string // as in BTF
	way      string // kprobe, fentry, lsm
	params   []btf.FuncParam
	syscall  bool
}

func spec(t testing.TB) *btf.Spec {
	t.Helper()
	s, err := btf.LoadKernelSpec()
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, btf.ErrNotSupported) {
		t.Skip("this machine's kernel has no BTF")
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// arguments gives where a probe finds its arguments.
func (p probe) arguments(t testing.TB, s *btf.Spec) predicate.Arguments {
	t.Helper()
	args, err := predicate.TypedContext(), error(nil)
	if p.way == "kprobe" {
		args, err = predicate.RegistersContext(s, runtime.GOARCH)
	}
	if err == nil && p.syscall {
		args, err = predicate.SyscallContext(args, s, runtime.GOARCH)
	}
	if err != nil {
		t.Fatal(err)
	}
	return args
}

// program counts, in counts[i], the calls by this process for which predicate i is true.
func (p probe) program(t testing.TB, s *btf.Spec, texts []string, counts *ebpf.Map) (*ebpf.Program, error) {
	t.Helper()
	ins := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.FnGetCurrentPidTgid.Call(),
		asm.RSh.Imm(asm.R0, 32),
		asm.JNE.Imm(asm.R0, int32(os.Getpid()), "end"),
	}
	args := p.arguments(t, s)
	for i, text := range texts {
		e, err := predicate.Parse(text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		prefix := fmt.Sprintf("p%d", i)
		code, err := predicate.Compile(e, predicate.Options{
			Spec: s, Function: p.function, Params: p.params, Arguments: args,
			Stack: predicate.StackSize - 512, // the bottom of the stack
			Fail:  prefix + "_no", Prefix: prefix,
		})
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		ins = append(ins, code...)
		ins = append(ins,
			asm.StoreImm(asm.RFP, -4, int64(i), asm.Word),
			asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -4),
			asm.LoadMapPtr(asm.R1, counts.FD()),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, prefix+"_no"),
			asm.Mov.Imm(asm.R1, 1),
			asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
			asm.Mov.Imm(asm.R0, 0).WithSymbol(prefix+"_no"),
		)
	}
	ins = append(ins, asm.Mov.Imm(asm.R0, 0).WithSymbol("end"), asm.Return())
	ps := &ebpf.ProgramSpec{Type: ebpf.Kprobe, License: "GPL", Instructions: ins}
	switch p.way {
	case "fentry":
		ps.Type, ps.AttachType, ps.AttachTo = ebpf.Tracing, ebpf.AttachTraceFEntry, p.function
	case "lsm":
		ps.Type, ps.AttachType, ps.AttachTo = ebpf.LSM, ebpf.AttachLSMMac, strings.TrimPrefix(p.function, "bpf_lsm_")
	}
	return ebpf.NewProgram(ps)
}

// load loads a program with all predicates; when that fails, each one alone, to
// say which it was.
func (p probe) load(t testing.TB, s *btf.Spec, texts []string, counts *ebpf.Map) *ebpf.Program {
	t.Helper()
	prog, err := p.program(t, s, texts, counts)
	if err == nil {
		t.Cleanup(func() { prog.Close() })
		return prog
	}
	for _, text := range texts {
		one, err := p.program(t, s, []string{text}, counts)
		if err != nil {
			t.Errorf("%s on %s: %s: %+v", p.way, p.function, text, err)
			continue
		}
		one.Close()
	}
	t.Fatalf("%s on %s: %v", p.way, p.function, err)
	return nil
}

func (p probe) attach(t testing.TB, prog *ebpf.Program) {
	t.Helper()
	var l link.Link
	var err error
	switch p.way {
	case "kprobe":
		l, err = link.Kprobe(p.function, prog, nil)
	case "fentry":
		l, err = link.AttachTracing(link.TracingOptions{Program: prog})
	case "lsm":
		l, err = link.AttachLSM(link.LSMOptions{Program: prog})
	}
	if err != nil {
		t.Fatalf("%s on %s: %v", p.way, p.function, err)
	}
	t.Cleanup(func() { l.Close() })
}

// action is a call that the probe sees, with a letter.
type action struct {
	name string
	do   func() error
}

// observe attaches a program with all predicates, does the actions, and compares
// which of them matched: the letters of those actions.
func observe(t *testing.T, p probe, actions []action, cases map[string]string) {
	t.Helper()
	s := spec(t)
	if p.way == "lsm" && !lsmActive() {
		t.Skip("bpf is no active security module on this kernel")
	}
	texts := make([]string, 0, len(cases))
	for text := range cases {
		texts = append(texts, text)
	}
	slices.Sort(texts)
	counts, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: uint32(len(texts))})
	if err != nil {
		t.Fatal(err)
	}
	defer counts.Close()
	p.attach(t, p.load(t, s, texts, counts))
	matched := make([]string, len(texts))
	before := make([]uint64, len(texts))
	for _, a := range actions {
		if err := a.do(); err != nil {
			t.Fatalf("%s: %v", a.name, err)
		}
		for i := range texts {
			var n uint64
			if err := counts.Lookup(uint32(i), &n); err != nil {
				t.Fatal(err)
			}
			if n > before[i] {
				matched[i] += a.name
			}
			before[i] = n
		}
	}
	for i, text := range texts {
		if matched[i] != cases[text] {
			t.Errorf("%s on %s: %s matched %q, want %q", p.way, p.function, text, matched[i], cases[text])
		}
	}
}

func lsmActive() bool {
	b, _ := os.ReadFile("/sys/kernel/security/lsm")
	return slices.Contains(strings.Split(strings.TrimSpace(string(b)), ","), "bpf")
}

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
