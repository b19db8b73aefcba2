package kernel

import (
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/test/vm"
)

// exitProgram is a program of amd64 that makes one system call, exit_group(0):
// whatever fails in its process failed before it was there.
func exitProgram(t testing.TB) []byte {
	t.Helper()
	code := []byte{
		0x31, 0xff, // xor edi, edi
		0xb8, unix.SYS_EXIT_GROUP, 0, 0, 0, // mov eax, exit_group
		0x0f, 0x05, // syscall
	}
	const at, headers = 0x400000, 64 + 56
	size := uint64(headers + len(code))
	out, err := binary.Append(nil, binary.LittleEndian, elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Entry: at + headers, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1, Shentsize: 64,
	})
	if err != nil {
		t.Fatal(err)
	}
	out, err = binary.Append(out, binary.LittleEndian, elf.Prog64{
		Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Vaddr: at, Paddr: at, Filesz: size, Memsz: size, Align: 4096,
	})
	if err != nil {
		t.Fatal(err)
	}
	return append(out, code...)
}

// runc exec works under rules on all that runc does on its way into the
// container, while what the container's programs do fails.
func TestExecIsSpared(t *testing.T) {
	vm.Need(t)
	a := startAgent(t)
	c := start(t, "exec", "sleep 1000")
	if err := os.WriteFile(filepath.Join(c.bundle, "rootfs/tmp/exit"), exitProgram(t), 0o755); err != nil {
		t.Fatal(err)
	}
	exit := func() {
		t.Helper()
		if out, ok := ended(t, "runc", "exec", c.name, "/tmp/exit"); !ok {
			t.Errorf("runc exec: %s", out)
		}
	}
	exit() // shows something only if it works without faults
	opens := fails("slab", unix.ENOMEM)
	opens.Kernel.Within = []policy.Frame{{Function: "do_sys_openat2"}}
	all := []struct {
		rule   policy.Rule
		script string // fails under it
	}{
		{fails("syscall:read", unix.EIO), "read version </proc/version"},
		{fails("syscall:write", unix.EIO), "echo"},
		{fails("syscall:openat", unix.EMFILE), "cat /proc/version"},
		{fails("syscall:clone", unix.EAGAIN), "(:); true"},
		{opens, "cat /proc/version"},
	}
	if vm.Kernel() != vm.Fault {
		all = all[:4]
	}
	var ids []string
	for _, on := range all {
		ids = append(ids, a.inject(c.pid(), on.rule))
	}
	for range 8 {
		exit()
	}
	for i, id := range ids {
		if f := a.fault(id); f.Counters.Injected != 0 {
			t.Errorf("%s hit runc: %+v", all[i].rule.Kernel.Hook, f.Counters)
		}
		a.recover(id)
	}
	for _, on := range all {
		id := a.inject(c.pid(), on.rule)
		out, ok := c.exec(on.script)
		if f := a.fault(id); ok || strings.Contains(out, "runc") || f.Counters.Injected == 0 {
			t.Errorf("%q under %s: ended with 0: %t, %q, %+v", on.script, on.rule.Kernel.Hook, ok, out, f.Counters)
		}
		a.recover(id)
	}
}
