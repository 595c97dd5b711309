package est

import (
	"encoding/json"
	"fmt"
)

// secretFields are the values of a DMS's settings that are never shown, in the
// order in which they are sealed.
func secretFields(d *DMS) []*string {
	var all []*string
	for _, a := range []*AuthSettings{&d.Settings.Enrollment.EST, &d.Settings.Reenrollment.EST} {
		c := &a.Webhook.Config
		all = append(all, &c.OIDC.ClientSecret, &c.APIKey.Key, &c.MTLS.Key, &c.Secret)
	}
	return all
}

func secretPlace(d *DMS) string { return dmsTable.Name() + "/" + d.ID }

// sealSecrets moves the secrets of d's settings to where they are kept; those it
// has [Kept] for are taken from old.
func (s *Service) sealSecrets(d *DMS, old DMS) error {
	kept, err := s.openSecrets(&old)
	if err != nil {
		return err
	}
	fields := secretFields(d)
	values := make([]string, len(fields))
	any := false
	for i, field := range fields {
		switch *field {
		case "":
			continue
		case Kept:
			if i < len(kept) {
				values[i] = kept[i]
			}
		default:
			values[i] = *field
		}
		*field = Kept
		any = true
	}
	if d.Secrets = nil; !any {
		return nil
	}
	plain, err := json.Marshal(values)
	if err != nil {
		return fmt.Errorf("est: %w", err)
	}
	defer clear(plain)
	d.Secrets = s.Box.Seal(secretPlace(d), plain)
	return nil
}

func (s *Service) openSecrets(d *DMS) ([]string, error) {
	if d.Secrets == nil {
		return nil, nil
	}
	plain, err := s.Box.Open(secretPlace(d), d.Secrets)
	if err != nil {
		return nil, fmt.Errorf("est: DMS %s: %w", d.ID, err)
	}
	defer plain.Wipe()
	var values []string
	if err := json.Unmarshal(plain, &values); err != nil {
		return nil, fmt.Errorf("est: DMS %s: %w", d.ID, err)
	}
	return values, nil
}

// openHook returns the webhook of a with its secrets in place.
func (s *Service) openHook(d *DMS, a *AuthSettings) (*Webhook, error) {
	values, err := s.openSecrets(d)
	if err != nil {
		return nil, err
	}
	full := *d
	for i, field := range secretFields(&full) {
		if i < len(values) {
			*field = values[i]
		}
	}
	if a == &d.Settings.Reenrollment.EST {
		return &full.Settings.Reenrollment.EST.Webhook, nil
	}
	return &full.Settings.Enrollment.EST.Webhook, nil
}
