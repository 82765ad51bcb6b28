// Package scratch says where tests keep the files of databases and tokens that
// they throw away: in memory, where there is plenty. A database is hundreds of
// small files, which a disk takes long to make and to sync.
package scratch

import (
	"sync"

	"golang.org/x/sys/unix"
)

const (
	memory = "/dev/shm"
	enough = 4 << 30 // bytes free, several times what the tests have at a time
)

// Root is the folder to make folders in, /dev/shm or /tmp: its name is short,
// as paths of sockets must be, and every user can pass through it.
var Root = sync.OnceValue(func() string {
	var fs unix.Statfs_t
	if err := unix.Statfs(memory, &fs); err != nil || fs.Type != unix.TMPFS_MAGIC || fs.Bavail*uint64(fs.Bsize) < enough || unix.Access(memory, unix.W_OK|unix.X_OK) != nil {
		return "/tmp"
	}
	return memory
})
