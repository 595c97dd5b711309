package argon

import "syscall"

// nice is how far the processes stand back: with so much they get a tenth of a
// processor the server could use all of.
const nice = 10

// ownGroup keeps what a terminal sends to the server from a process, and lets
// giveWay be of it alone.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// giveWay lowers the priority of every thread there is and will be. Of a process the
// kernel would lower that of one thread; of a group it does that of all.
func giveWay() error {
	raw, err := syscall.Getpriority(syscall.PRIO_PGRP, 0)
	if err != nil {
		return err
	}
	is := 20 - raw // the system call counts backwards, from 40 to 1
	return syscall.Setpriority(syscall.PRIO_PGRP, 0, min(is+nice, 19))
}
