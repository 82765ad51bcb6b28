package backend

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"kluis/auditlog"
	"kluis/auditlog/oversight"
	"kluis/authz"
	"kluis/cryptoserver/client"
	"kluis/internal/config"
	"kluis/internal/postgres"
)

// AuditLog is the audit log as it can be read: with the database, and the public
// keys.
type AuditLog struct {
	*postgres.Auditor
	Log   auditlog.Log
	Seals *authz.SealKeys
}

// OpenAuditLog connects as the auditor.
func OpenAuditLog(ctx context.Context, c config.Operator) (*AuditLog, error) {
	if c.AuditOrigin == "" {
		return nil, fmt.Errorf("%w: it has no audit_origin", ErrSetting)
	}
	keys, err := config.PublicKeys(c.SealKeysFile)
	if err != nil {
		return nil, fmt.Errorf("seal_keys_file: %w", err)
	}
	seals, err := authz.NewSealKeys(keys...)
	if err != nil {
		return nil, err
	}
	dsn, err := database("auditor_url", c.AuditorURL, c.PasswordFile)
	if err != nil {
		return nil, err
	}
	store, err := postgres.NewAuditor(ctx, dsn)
	if err != nil {
		return nil, err
	}
	return &AuditLog{store, auditlog.Log{Origin: c.AuditOrigin, Keys: keys}, seals}, nil
}

var _ auditlog.Store = (*postgres.Auditor)(nil)

// Auditor keeps the audit log.
type Auditor struct {
	*auditlog.Auditor
	closer func() error
}

// OpenAuditor connects as the auditor, to the cryptoservers as well.
func OpenAuditor(ctx context.Context, c config.Operator, log *slog.Logger) (*Auditor, error) {
	if c.AuditExportDir == "" {
		return nil, fmt.Errorf("%w: it has no audit_export_dir", ErrSetting)
	}
	servers, err := cryptoservers("auditor", c.Auditor)
	if err != nil {
		return nil, err
	}
	l, err := OpenAuditLog(ctx, c)
	if err != nil {
		return nil, errors.Join(err, servers.Close())
	}
	closer := func() error { return errors.Join(servers.Close(), l.Close()) }
	export, err := auditlog.OpenExport(c.AuditExportDir, l.Log)
	if err != nil {
		return nil, errors.Join(err, closer())
	}
	rules, err := oversightRules(c)
	if err != nil {
		return nil, errors.Join(err, closer())
	}
	a, err := auditlog.New(l.Auditor, AuditServers{servers}, export, l.Log, log, rules, auditlog.Timing{})
	if err != nil {
		return nil, errors.Join(err, closer())
	}
	return &Auditor{a, closer}, nil
}

func oversightRules(c config.Operator) (oversight.Rules, error) {
	profile, err := Profile(c)
	if err != nil {
		return oversight.Rules{}, err
	}
	r := oversight.Rules{Zone: profile.Location(), Working: oversight.DefaultHours(), Keep: c.Oversight.KeepDays}
	if w := c.Oversight.WorkingHours; w.Given() {
		r.Working.Days, r.Working.From, r.Working.To, err = w.Times()
	}
	return r, err
}

// Close ends the connections.
func (a *Auditor) Close() error { return a.closer() }

// AuditServers is the pool as package auditlog wants it.
type AuditServers struct{ Pool *client.Client }

var _ auditlog.Servers = AuditServers{}

// Addresses implements auditlog.Servers.
func (s AuditServers) Addresses() []string { return s.Pool.Addresses() }

// ReadJournal implements auditlog.Servers.
func (s AuditServers) ReadJournal(ctx context.Context, address string, boot [16]byte, after uint64) ([]auditlog.Boot, [][]byte, error) {
	j, err := s.Pool.ReadJournal(ctx, address, boot, after)
	if err != nil {
		return nil, nil, err
	}
	boots := make([]auditlog.Boot, len(j.Boots))
	for i, b := range j.Boots {
		boots[i] = auditlog.Boot(b)
	}
	return boots, j.Entries, nil
}

// SignCheckpoint implements auditlog.Servers.
func (s AuditServers) SignCheckpoint(ctx context.Context, origin string, size uint64, root [32]byte) (string, error) {
	return s.Pool.SignCheckpoint(ctx, origin, size, root)
}
