package cli

import (
	"errors"
	"io/fs"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"keystead/client"
	"keystead/seal"
	"keystead/server"
	"keystead/store"
)

func backupCommand(a *app) *cobra.Command {
	return group("backup", "Copy the database, and look at copies",
		backupCreate(a), backupList(a), backupVerify(a))
}

var backupColumns = []column[client.Backup]{
	{name: "name", cell: func(b client.Backup) string { return b.Name }},
	{name: "created", cell: func(b client.Backup) string { return when(b.CreatedAt) }},
	{name: "bytes", cell: func(b client.Backup) string { return strconv.FormatInt(b.Size, 10) }},
	{name: "audit", cell: func(b client.Backup) string { return strconv.FormatUint(b.AuditSeq, 10) }},
	{name: "master_key", cell: func(b client.Backup) string { return b.MasterKey }},
	{name: "sha256", cell: func(b client.Backup) string { return b.SHA256 }, wide: true},
}

func backupCreate(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "create",
		Short: "Copy the database of a running server to its directory of backups",
		Long: `Copy the database of a running server to its directory of backups
(backup.dir; <data>/backups if not set), while it goes on serving.

The master key is not in the copy, and without it the copy is worthless: keep one
elsewhere (master_key says where it is).`,
		Args: cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			b, err := c.CreateBackup(cmd.Context())
			if err != nil {
				return err
			}
			return printOne(a, b, backupColumns)
		}),
	}
}

func backupList(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the copies that the server keeps, oldest first",
		Args:  cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			return printList(a, c.Backups(cmd.Context()), backupColumns)
		}),
	}
}

func backupVerify(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "verify FILE",
		Short: "Read a copy from end to end, and look whether it is whole; needs no server",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			v, err := server.VerifyBackup(cmd.Context(), args[0])
			if err != nil {
				return restoring(err, args[0])
			}
			return printOne(a, v, []column[server.Verified]{
				{name: "sound", cell: func(server.Verified) string { return "true" }},
				{name: "records", cell: func(v server.Verified) string { return strconv.Itoa(v.Records) }},
				{name: "created", cell: func(v server.Verified) string {
					if v.Backup == nil {
						return "not known: there is no " + filepath.Base(args[0]) + ".json beside it"
					}
					return when(v.Backup.CreatedAt)
				}},
				{name: "master_key", cell: func(v server.Verified) string {
					if v.Backup == nil {
						return ""
					}
					return v.Backup.MasterKey
				}},
			})
		},
	}
}

func restoreCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "restore FILE",
		Short: "Put back a copy of the database; the server must be stopped",
		Long: `Put back a copy of the database; the server must be stopped. The copy is verified
first, and the master key has to open it. The database that was there is kept,
under another name.

What was revoked since the copy was made stays revoked: the next start takes it
up from devices.log and revocations.log in the data directory. On a new machine,
put these two files there first, with the master key. Tokens from before the
restore are no longer good.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := a.config()
			if err != nil {
				return err
			}
			out, err := server.Restore(cmd.Context(), cfg, args[0], time.Now()) //nolint:forbidigo // for the name of a file
			if err != nil {
				return restoring(err, args[0])
			}
			if err := printOne(a, out, []column[server.Restored]{
				{name: "database", cell: func(r server.Restored) string { return r.Database }},
				{name: "from", cell: func(r server.Restored) string { return r.From }},
				{name: "before", cell: func(r server.Restored) string { return r.Before }},
				{name: "records", cell: func(r server.Restored) string { return strconv.Itoa(r.Records) }},
			}); err != nil {
				return err
			}
			a.done("keystead serve starts it; %s can be deleted when all is well", out.Before)
			return nil
		},
	}
}

func compactCommand(a *app) *cobra.Command {
	var dry bool
	cmd := &cobra.Command{
		Use:   "compact",
		Short: "Give what is free in the database back to the disk; the server must be stopped",
		Long: `Write the database anew without what is free in it, and put that in place of the
old; the server must be stopped. The file never shrinks by itself: what is deleted,
and what is replaced while a backup is made, leaves room in it that later changes
use. Where there is much, the list of it makes every change slower.

Each value is verified on the way. The disk needs room for what is used a second
time; on any error the database is as it was.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.config()
			if err != nil {
				return err
			}
			var tell func(done, total int64)
			if !dry {
				bar := a.progress("MB", 1)
				defer bar.end()
				tell = func(done, total int64) {
					bar.total = max(1, int(total>>20))
					bar.at(int(done >> 20))
				}
			}
			out, err := server.Compact(cmd.Context(), cfg, dry, tell)
			if err != nil {
				return offline(err)
			}
			return printOne(a, out, []column[server.Compacted]{
				{name: "database", cell: func(c server.Compacted) string { return c.Database }},
				{name: "before", cell: func(c server.Compacted) string { return strconv.FormatInt(c.Before, 10) }},
				{name: "free", cell: func(c server.Compacted) string { return strconv.FormatInt(c.Free, 10) }},
				{name: "after", cell: func(c server.Compacted) string {
					if dry {
						return "not done: dry run"
					}
					return strconv.FormatInt(c.After, 10)
				}},
			})
		},
	}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only say how much is free")
	return cmd
}

// offline says how the program ends for what keeps a command from working on the files of a
// stopped server.
func offline(err error) error {
	switch {
	case errors.Is(err, store.ErrInUse):
		return coded(exitFailed, oneLine(err), "stop the server of this data directory first")
	case errors.Is(err, store.ErrCorrupt), errors.Is(err, store.ErrNewer):
		return coded(exitData, oneLine(err), "nothing was changed")
	case errors.Is(err, seal.ErrMaster), errors.Is(err, seal.ErrNoMaster):
		return coded(exitConfig, oneLine(err), "put the master key of this database where master_key says it is; nothing was changed")
	case errors.Is(err, fs.ErrNotExist):
		return coded(exitNotFound, oneLine(err), "--data names the data directory of the server")
	case errors.Is(err, syscall.ENOSPC):
		return coded(exitFailed, oneLine(err), "make room on the disk; nothing was changed")
	}
	return oneLine(err)
}

// restoring says how the program ends for what is wrong with a backup.
func restoring(err error, file string) error {
	switch {
	case errors.Is(err, store.ErrCorrupt), errors.Is(err, store.ErrNewer):
		return coded(exitData, oneLine(err), "nothing was changed; try an older backup")
	case errors.Is(err, seal.ErrMaster), errors.Is(err, seal.ErrNoMaster):
		return coded(exitConfig, oneLine(err), "put the master key that belongs to %s where master_key says it is; nothing was changed", file)
	case errors.Is(err, fs.ErrNotExist):
		return coded(exitNotFound, oneLine(err), "keystead backup list shows those there are; they are in <data>/backups")
	}
	return offline(err)
}
