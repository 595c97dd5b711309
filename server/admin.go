package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"keystead/accounts"
)

// adminFile is how the first administrator, and the command line, find the
// server and get in. The server writes it at first start and never reads a
// secret back from it; whoever holds the keys elsewhere may delete it.
type adminFile struct {
	URL       string     `json:"url"`
	CAFile    string     `json:"ca_file"`
	APIKey    string     `json:"api_key"`
	AccessKey *accessKey `json:"access_key,omitempty"`
	Org       string     `json:"org"`
}

// accessKey is the platform's own access key: it makes organisations.
type accessKey struct {
	Key    string `json:"key"`
	Secret string `json:"secret"`
}

func (s *Server) adminPath() string { return filepath.Join(s.Config.Data, "admin.json") }

// firstStart makes what there has to be before anybody can do anything.
func (s *Server) firstStart(ctx context.Context) error {
	err := s.Accounts.EnsureFirst(ctx, func(f accounts.First) error {
		platform, secret, err := s.AccessKeys.ReplacePlatform(ctx)
		if err != nil {
			return err
		}
		return writeJSON(s.adminPath(), adminFile{
			URL: s.Config.PublicURL, CAFile: "ca.pem", APIKey: string(f.APIKey), Org: f.Org.ID,
			AccessKey: &accessKey{Key: platform.Key, Secret: string(secret)},
		}, 0o600)
	})
	if err != nil {
		return err
	}
	return s.offerSetup(ctx)
}

// offerSetup writes the one-time link by which the first administrator gets an
// address and a password to a file, as long as nobody can log in as one. It is
// never logged: whoever reads logs is no administrator.
func (s *Server) offerSetup(ctx context.Context) error {
	path := filepath.Join(s.Config.Data, "setup-link")
	key, err := s.Accounts.OfferSetup(ctx)
	if err != nil {
		return err
	}
	if key == nil {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("setup link: %w", err)
		}
		return nil
	}
	return writeFile(path, []byte(s.Config.PublicURL+"/setup#"+string(key)+"\n"), 0o600)
}

// noteURL puts where the server listens in admin.json, if that is there and no
// public URL says it.
func (s *Server) noteURL() error {
	if s.Config.PublicURL != "" {
		return nil
	}
	b, err := os.ReadFile(s.adminPath())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var f adminFile
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err != nil {
		return fmt.Errorf("%s: %w; delete it if it is not needed", s.adminPath(), err)
	}
	url := "https://" + reachable(s.Addresses()["https"])
	if f.URL == url {
		return nil
	}
	f.URL = url
	return writeJSON(s.adminPath(), f, 0o600)
}

// reachable turns the address a listener is bound to into one this machine
// reaches it at.
func reachable(bound string) string {
	host, port, err := net.SplitHostPort(bound)
	if ip := net.ParseIP(host); err == nil && (host == "" || ip != nil && ip.IsUnspecified()) {
		host = "localhost"
	}
	return net.JoinHostPort(host, port)
}
