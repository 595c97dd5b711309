//go:build unix

package bolt

import (
	"os"
	"syscall"
)

// unlock lets go of the lock on f. Closing f would not: what bbolt mapped of it,
// and did not get to unmap, keeps it.
func unlock(f *os.File) { _ = syscall.Flock(int(f.Fd()), syscall.LOCK_UN) }
