package kernel

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	faults "github.com/faultgraft/faultgraft/kernel"
	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/test/vm"
)

// K1: what a stock kernel can do works, at hooks of the security modules.
func TestStockKernelHasSecurityHooks(t *testing.T) {
	vm.Need(t)
	a := startAgent(t)
	c, other := start(t, "stock", "sleep 1000"), start(t, "stock-other", "sleep 1000")
	for _, test := range []struct {
		rule         policy.Rule
		script, says string
	}{
		{fails("lsm:path_mkdir", unix.ENOSPC), "mkdir /tmp/d && rmdir /tmp/d", "No space left on device"},
		{fails("lsm:inode_create", unix.EDQUOT), ": >/tmp/f", "Disk quota exceeded"},
		{fails("lsm:sb_umount", unix.EBUSY), "mount -t tmpfs none /mnt && umount /mnt", "busy"},
		{fails("lsm:socket_create", unix.ENFILE), "nc -l -p 7 -w 1 -e true & sleep 0.3; nc -w 1 127.0.0.1 8", "Too many open files in system"},
	} {
		id := a.inject(c.pid(), test.rule)
		if out, _ := c.exec(test.script); !strings.Contains(strings.ToLower(out), strings.ToLower(test.says)) {
			t.Errorf("%s: %q prints %q, want %q", test.rule.Kernel.Hook, test.script, out, test.says)
		}
		if out, _ := other.exec(test.script); strings.Contains(out, test.says) {
			t.Errorf("%s: another container prints %q", test.rule.Kernel.Hook, out)
		}
		a.recover(id)
		if out, _ := c.exec("umount /mnt; " + test.script); strings.Contains(out, test.says) {
			t.Errorf("%s: after recover it prints %q", test.rule.Kernel.Hook, out)
		}
	}
}

// K1: what a stock kernel cannot do is refused with the option that it is built without, and nothing is armed.
func TestStockKernelRefuses(t *testing.T) {
	vm.NeedDebian(t)
	a := startAgent(t)
	c := start(t, "refused", "sleep 1000")
	byOverride := fails("syscall:mount", unix.ENOMEM)
	byOverride.Kernel.Backend = faults.Override
	once := fails("page", unix.ENOMEM)
	once.Trigger.Times = 1
	for _, test := range []struct {
		rule   policy.Rule
		option string
	}{
		{fails("slab", unix.ENOMEM), "CONFIG_FUNCTION_ERROR_INJECTION"},
		{once, "CONFIG_FUNCTION_ERROR_INJECTION"},
		{fails("bio", unix.EIO), "CONFIG_FUNCTION_ERROR_INJECTION"},
		{fails("syscall:getppid", unix.EPERM), "CONFIG_BPF_KPROBE_OVERRIDE"},
		{byOverride, "CONFIG_BPF_KPROBE_OVERRIDE"},
	} {
		_, err := a.tryInject(c.pid(), test.rule)
		if err == nil {
			t.Errorf("%s was not refused", test.rule.Kernel.Hook)
		} else if !strings.Contains(err.Error(), test.option) {
			t.Errorf("%s: the refusal does not name %s: %v", test.rule.Kernel.Hook, test.option, err)
		}
	}
	if got := a.faults(); len(got) != 0 {
		t.Errorf("armed: %+v", got)
	}
}
