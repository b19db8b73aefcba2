package keeper

import (
	"errors"
	"os"
	"time"

	"github.com/faultgraft/faultgraft/plugin/graft"
	"github.com/faultgraft/faultgraft/plugin/wire"
)

// closeAfter closes the connection with a keeper that is killed and does not come to its end: where a file system does not answer the
// close of one of its files, its sockets are not closed either (exit_files comes before exit_task_work in do_exit, kernel/exit.c, and a
// last fput is work of the task; Linux 6.18), and nothing can be polled for. over ends it.
func closeAfter(over <-chan struct{}, keeper int, conn *wire.Conn) {
	look := time.NewTicker(time.Second)
	defer look.Stop()
	for {
		select {
		case <-over:
			return
		case <-look.C:
		}
		if s, err := graft.ReadStat(keeper); errors.Is(err, os.ErrNotExist) || err == nil && s.Ending() {
			_ = conn.Close()
			return
		}
	}
}
