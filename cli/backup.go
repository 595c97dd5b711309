package cli

import (
	"errors"
	"io/fs"
	"path/filepath"
	"strconv"
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

// restoring says how the program ends for what is wrong with a backup.
func restoring(err error, file string) error {
	switch {
	case errors.Is(err, store.ErrInUse):
		return coded(exitFailed, oneLine(err), "stop the server of this data directory first")
	case errors.Is(err, store.ErrCorrupt), errors.Is(err, store.ErrNewer):
		return coded(exitData, oneLine(err), "nothing was changed; try an older backup")
	case errors.Is(err, seal.ErrMaster), errors.Is(err, seal.ErrNoMaster):
		return coded(exitConfig, oneLine(err), "put the master key that belongs to %s where master_key says it is; nothing was changed", file)
	case errors.Is(err, fs.ErrNotExist):
		return coded(exitNotFound, oneLine(err), "keystead backup list shows those there are; they are in <data>/backups")
	}
	return oneLine(err)
}
