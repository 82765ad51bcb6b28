// Package backend connects the operator's command to an installation: the
// database under the right role, the cryptoservers under the right identity,
// and what is stored there believed only when its seal verifies.
package backend

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"kluis/authz"
	"kluis/cryptoserver/client"
	"kluis/cryptoserver/envelope"
	"kluis/ingest"
	"kluis/internal/config"
	"kluis/internal/postgres"
	"kluis/meter"
)

// ErrSetting says that the configuration lacks what a command needs.
var ErrSetting = errors.New("configuration incomplete")

const (
	// sealTimeout and statementTimeout are generous: batches are large, and
	// nobody waits for an answer within a second.
	sealTimeout      = 60 * time.Second
	statementTimeout = 60 * time.Second
)

// Profile reads the installation's market profile.
func Profile(c config.Operator) (*meter.Profile, error) {
	raw, err := os.ReadFile(c.ProfileFile)
	if err != nil {
		return nil, fmt.Errorf("profile_file: %w", err)
	}
	p, err := meter.ParseProfile(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.ProfileFile, err)
	}
	return p, nil
}

func sealKeys(c config.Operator) (*authz.SealKeys, error) {
	keys, err := config.PublicKeys(c.SealKeysFile)
	if err != nil {
		return nil, fmt.Errorf("seal_keys_file: %w", err)
	}
	return authz.NewSealKeys(keys...)
}

func cryptoservers(key string, c config.Cryptoservers) (*client.Client, error) {
	if len(c.Addresses) == 0 {
		return nil, fmt.Errorf("%w: it names no cryptoservers under %s", ErrSetting, key)
	}
	t, err := config.ClientTLS(c.TLS)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return client.New(client.Config{Addresses: c.Addresses, TLS: t, Timeout: sealTimeout})
}

func database(key, url, passwordFile string) (postgres.Config, error) {
	if url == "" {
		return postgres.Config{}, fmt.Errorf("%w: it has no %s", ErrSetting, key)
	}
	dsn, err := config.DSN(url, passwordFile)
	if err != nil {
		return postgres.Config{}, fmt.Errorf("%s: %w", key, err)
	}
	return postgres.Config{DSN: dsn, MaxConns: 4, StatementTimeout: statementTimeout}, nil
}

// Ingest stores readings.
type Ingest struct {
	*ingest.Ingester
	Profile *meter.Profile

	keys *authz.SealKeys

	servers *client.Client
	store   *postgres.Ingest
}

// OpenIngest connects as ingest: it can mint and seal, never open.
func OpenIngest(ctx context.Context, c config.Operator) (*Ingest, error) {
	p, err := Profile(c)
	if err != nil {
		return nil, err
	}
	keys, err := sealKeys(c)
	if err != nil {
		return nil, err
	}
	dsn, err := database("ingest_url", c.IngestURL, c.PasswordFile)
	if err != nil {
		return nil, err
	}
	servers, err := cryptoservers("ingest", c.Ingest)
	if err != nil {
		return nil, err
	}
	store, err := postgres.NewIngest(ctx, dsn)
	if err != nil {
		return nil, errors.Join(err, servers.Close())
	}
	return &Ingest{ingest.New(p, keys, IngestSealer{servers}, IngestStore{store}), p, keys, servers, store}, nil
}

// People stores names and addresses.
func (i *Ingest) People() (*ingest.People, error) {
	return ingest.NewPeople(i.Profile, i.keys, PeopleSealer{i.servers}, IngestStore{i.store})
}

// Close ends the connections.
func (i *Ingest) Close() error { return errors.Join(i.servers.Close(), i.store.Close()) }

// IngestSealer is the pool as package ingest wants it.
type IngestSealer struct{ ingest.Sealer }

// Seal implements ingest.Sealer. A data key that was erased since it was read,
// because another took its place, is the same as one that somebody else wrote.
func (s IngestSealer) Seal(ctx context.Context, ean meter.EAN, keys []envelope.KeyRecord, blocks []envelope.PlainBlock) ([]envelope.SealedContent, error) {
	out, err := s.Sealer.Seal(ctx, ean, keys, blocks)
	if errors.Is(err, client.ErrErased) {
		return nil, fmt.Errorf("%w: %w", ingest.ErrConflict, err)
	}
	return out, err
}

// PeopleSealer is the pool as package ingest wants it for names and addresses.
type PeopleSealer struct{ ingest.PeopleSealer }

// SealIdentities implements ingest.PeopleSealer; of an erased data key as Seal.
func (s PeopleSealer) SealIdentities(ctx context.Context, in []envelope.PlainIdentity) ([]envelope.IdentityContent, error) {
	out, err := s.PeopleSealer.SealIdentities(ctx, in)
	if errors.Is(err, client.ErrErased) {
		return nil, fmt.Errorf("%w: %w", ingest.ErrConflict, err)
	}
	return out, err
}

// IngestStore is the database as package ingest wants it.
type IngestStore struct{ DB *postgres.Ingest }

var _ ingest.Store = IngestStore{}

// LegalFiles implements ingest.Store.
func (s IngestStore) LegalFiles(ctx context.Context, eans []meter.EAN) ([]authz.StoredFile, error) {
	return s.DB.LegalFiles(ctx, eans)
}

// Heads implements ingest.Store.
func (s IngestStore) Heads(ctx context.Context, eans []meter.EAN, fields []meter.FieldCode, days meter.DayRange) ([]ingest.Head, error) {
	heads, err := s.DB.Heads(ctx, eans, fields, days)
	if err != nil {
		return nil, err
	}
	out := make([]ingest.Head, len(heads))
	for i, h := range heads {
		out[i] = ingest.Head{EAN: h.EAN, Field: h.Field, Day: h.Day, Version: h.Version, ValueCount: h.ValueCount, ContentMAC: h.ContentMAC}
	}
	return out, nil
}

// Keys implements ingest.Store.
func (s IngestStore) Keys(ctx context.Context, eans []meter.EAN, first, last meter.Month) ([]envelope.KeyRecord, error) {
	return s.DB.Keys(ctx, eans, first, last)
}

// IdentityHeads implements ingest.PeopleStore.
func (s IngestStore) IdentityHeads(ctx context.Context, of []ingest.Customer) ([]ingest.IdentityHead, error) {
	at := make([]postgres.IdentityAt, len(of))
	for i, c := range of {
		at[i] = postgres.IdentityAt{EAN: c.EAN, Day: c.From}
	}
	heads, err := s.DB.IdentityHeads(ctx, at)
	if err != nil {
		return nil, err
	}
	out := make([]ingest.IdentityHead, len(heads))
	for i, h := range heads {
		out[i] = ingest.IdentityHead(h)
	}
	return out, nil
}

// CommitIdentities implements ingest.PeopleStore.
func (s IngestStore) CommitIdentities(ctx context.Context, keys []envelope.KeyRecord, in []ingest.IdentityRow) error {
	rows := make([]postgres.IdentityRow, len(in))
	for i, r := range in {
		rows[i] = postgres.IdentityRow(r)
	}
	err := s.DB.CommitIdentities(ctx, keys, rows)
	if errors.Is(err, postgres.ErrConflict) {
		return fmt.Errorf("%w: %w", ingest.ErrConflict, err)
	}
	return err
}

// Commit implements ingest.Store.
func (s IngestStore) Commit(ctx context.Context, b ingest.Batch) error {
	rows := make([]postgres.Row, len(b.Blocks))
	for i, r := range b.Blocks {
		rows[i] = postgres.Row(r)
	}
	err := s.DB.Commit(ctx, postgres.Batch{Keys: b.Keys, Blocks: rows})
	if errors.Is(err, postgres.ErrConflict) {
		return fmt.Errorf("%w: %w", ingest.ErrConflict, err)
	}
	return err
}
