package backend

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kluis/cryptoserver/client"
	"kluis/cryptoserver/control"
	"kluis/cryptoserver/cryptopb"
	"kluis/cryptoserver/envelope"
	"kluis/custodian"
	"kluis/internal/config"
	"kluis/internal/postgres"
	"kluis/meter"
)

// Custodian keeps the keys' lives.
type Custodian struct {
	*custodian.Custodian
	store  *postgres.Custodian
	closer func() error
}

// OpenCustodian connects as the custodian, and opens and verifies its copy of
// the control feed.
func OpenCustodian(ctx context.Context, c config.Operator, log *slog.Logger) (*Custodian, error) {
	keys, err := sealKeys(c)
	if err != nil {
		return nil, err
	}
	if c.FeedCopyFile == "" {
		return nil, fmt.Errorf("%w: it has no feed_copy_file", ErrSetting)
	}
	dsn, err := database("custodian_url", c.CustodianURL, c.PasswordFile)
	if err != nil {
		return nil, err
	}
	dsn.MaxConns = 8
	servers, err := cryptoservers("custodian", c.Custodian)
	if err != nil {
		return nil, err
	}
	store, err := postgres.NewCustodian(ctx, dsn)
	if err != nil {
		return nil, errors.Join(err, servers.Close())
	}
	k, err := custodian.New(CustodianStore{store}, CustodianServers{servers}, keys, c.FeedCopyFile, log, time.Now)
	if err != nil {
		return nil, errors.Join(err, servers.Close(), store.Close())
	}
	return &Custodian{k, store, func() error { return errors.Join(k.Close(), servers.Close(), store.Close()) }}, nil
}

// Register has the daemon's metrics exported, and what the database has room for.
func (c *Custodian) Register(reg prometheus.Registerer) error {
	return errors.Join(c.Custodian.Register(reg), reg.Register(roomCollector{c.store}))
}

// Close ends the connections.
func (c *Custodian) Close() error { return c.closer() }

// CustodianStore is the database as package custodian wants it.
type CustodianStore struct{ DB *postgres.Custodian }

var _ custodian.Store = CustodianStore{}

// stored says what an error of the database means to the custodian.
func stored(err error) error {
	for is, means := range map[error]error{
		postgres.ErrConflict: custodian.ErrConflict, postgres.ErrGone: custodian.ErrGone, postgres.ErrUnavailable: custodian.ErrUnavailable,
	} {
		if errors.Is(err, is) {
			return fmt.Errorf("%w: %w", means, err)
		}
	}
	return err
}

// Feed implements custodian.Store.
func (s CustodianStore) Feed(ctx context.Context, after uint64, limit int) ([]custodian.Appended, error) {
	entries, err := s.DB.Feed(ctx, after, limit)
	if err != nil {
		return nil, stored(err)
	}
	out := make([]custodian.Appended, len(entries))
	for i, e := range entries {
		out[i] = custodian.Appended(e)
	}
	return out, nil
}

// Append implements custodian.Store.
func (s CustodianStore) Append(ctx context.Context, a custodian.Appended) error {
	return stored(s.DB.Append(ctx, postgres.ControlEntry(a)))
}

// Heartbeat implements custodian.Store.
func (s CustodianStore) Heartbeat(ctx context.Context, head []byte) error {
	return stored(s.DB.Heartbeat(ctx, head))
}

// LastHeartbeat implements custodian.Store.
func (s CustodianStore) LastHeartbeat(ctx context.Context) ([]byte, error) {
	b, err := s.DB.LastHeartbeat(ctx)
	return b, stored(err)
}

// Scan implements custodian.Store.
func (s CustodianStore) Scan(ctx context.Context, sel custodian.KeySelection, after custodian.Place, limit int) ([]envelope.KeyRecord, *custodian.Place, error) {
	keys, next, err := s.DB.Scan(ctx, postgres.KeySelection(sel), postgres.Place(after), limit)
	if err != nil {
		return nil, nil, stored(err)
	}
	return keys, (*custodian.Place)(next), nil
}

// ReplaceWrapped implements custodian.Store.
func (s CustodianStore) ReplaceWrapped(ctx context.Context, old, new []envelope.KeyRecord) (int, error) {
	n, err := s.DB.ReplaceWrapped(ctx, old, new)
	return n, stored(err)
}

// DeleteKeys implements custodian.Store.
func (s CustodianStore) DeleteKeys(ctx context.Context, keys []custodian.KeyRef, sequence uint64) (int, error) {
	refs := make([]postgres.KeyRef, len(keys))
	for i, k := range keys {
		refs[i] = postgres.KeyRef(k)
	}
	n, err := s.DB.DeleteKeys(ctx, refs, sequence)
	return n, stored(err)
}

// BlocksUnder implements custodian.Store.
func (s CustodianStore) BlocksUnder(ctx context.Context, key envelope.KeyRecord) ([]envelope.SealedBlock, error) {
	blocks, err := s.DB.BlocksUnder(ctx, key)
	return blocks, stored(err)
}

// ReplaceDataKey implements custodian.Store.
func (s CustodianStore) ReplaceDataKey(ctx context.Context, old, new envelope.KeyRecord, blocks []envelope.SealedBlock) error {
	return stored(s.DB.ReplaceDataKey(ctx, old, new, blocks))
}

// Retired implements custodian.Store.
func (s CustodianStore) Retired(ctx context.Context, ean meter.EAN, atLeast time.Duration, limit int) ([]custodian.KeyRef, error) {
	keys, err := s.DB.Retired(ctx, ean, atLeast, limit)
	out := make([]custodian.KeyRef, len(keys))
	for i, k := range keys {
		out[i] = custodian.KeyRef(k)
	}
	return out, stored(err)
}

// CountKeys implements custodian.Store.
func (s CustodianStore) CountKeys(ctx context.Context) (map[uint32]custodian.KeyCount, error) {
	counts, err := s.DB.CountKeys(ctx)
	out := make(map[uint32]custodian.KeyCount, len(counts))
	for epoch, n := range counts {
		out[epoch] = custodian.KeyCount(n)
	}
	return out, stored(err)
}

// CountErased implements custodian.Store.
func (s CustodianStore) CountErased(ctx context.Context) (map[uint32]custodian.ErasedCount, error) {
	counts, err := s.DB.CountErased(ctx)
	out := make(map[uint32]custodian.ErasedCount, len(counts))
	for epoch, n := range counts {
		out[epoch] = custodian.ErasedCount(n)
	}
	return out, stored(err)
}

// CustodianServers is the pool as package custodian wants it.
type CustodianServers struct{ Pool *client.Client }

var _ custodian.Cryptoservers = CustodianServers{}

// served says what an error of the pool means to the custodian.
func served(err error) error {
	for _, m := range []struct{ is, means error }{
		{client.ErrControlFork, custodian.ErrFork},
		{client.ErrErased, custodian.ErrErased},
		{client.ErrDamaged, custodian.ErrDamaged},
		{client.ErrKeyRecord, custodian.ErrDamaged},
		{client.ErrUnavailable, custodian.ErrUnavailable},
	} {
		if errors.Is(err, m.is) {
			return fmt.Errorf("%w: %w", m.means, err)
		}
	}
	if e := (*client.Error)(nil); errors.As(err, &e) && e.Reason == cryptopb.ReasonSealedTooOften {
		return fmt.Errorf("%w: %w", custodian.ErrTooOften, err)
	}
	return err
}

// SignControl implements custodian.Cryptoservers.
func (s CustodianServers) SignControl(ctx context.Context, head control.Head, entry []byte) ([]byte, error) {
	b, err := s.Pool.SignControl(ctx, head, entry)
	return b, served(err)
}

// Addresses implements custodian.Cryptoservers.
func (s CustodianServers) Addresses() []string { return s.Pool.Addresses() }

// PutControl implements custodian.Cryptoservers.
func (s CustodianServers) PutControl(ctx context.Context, address string, first uint64, entries [][]byte, head []byte) (uint64, error) {
	sequence, err := s.Pool.PutControl(ctx, address, first, entries, head)
	return sequence, served(err)
}

// Status implements custodian.Cryptoservers.
func (s CustodianServers) Status(ctx context.Context) []custodian.ServerStatus {
	all := s.Pool.Status(ctx)
	out := make([]custodian.ServerStatus, len(all))
	for i, st := range all {
		o := &out[i]
		*o = custodian.ServerStatus{
			Address: st.Address, Err: st.Err, ServerID: st.ServerID, Version: st.Version, Roles: st.Roles, Healthy: st.Healthy,
			Sequence: st.ControlSequence, HeadAt: st.ControlAt, ActiveEpoch: st.ActiveEpoch,
			Tokens: make([]custodian.TokenStatus, len(st.Tokens)),
		}
		for j, t := range st.Tokens {
			token := custodian.TokenStatus{Role: t.Role, Label: t.Label, State: t.State, Handles: t.Handles, Keys: make([]custodian.KeyStatus, len(t.Keys))}
			for n, k := range t.Keys {
				token.Keys[n] = custodian.KeyStatus(k)
			}
			o.Tokens[j] = token
		}
	}
	return out
}

// Mint implements custodian.Cryptoservers.
func (s CustodianServers) Mint(ctx context.Context, specs []envelope.KeySpec) ([]envelope.KeyRecord, error) {
	keys, err := s.Pool.Mint(ctx, specs)
	return keys, served(err)
}

// Rewrap implements custodian.Cryptoservers.
func (s CustodianServers) Rewrap(ctx context.Context, keys []envelope.KeyRecord) (uint32, []custodian.RewrapResult, error) {
	epoch, results, err := s.Pool.Rewrap(ctx, keys)
	if err != nil {
		return 0, nil, served(err)
	}
	out := make([]custodian.RewrapResult, len(results))
	for i, r := range results {
		out[i] = custodian.RewrapResult{Record: r.Record, Err: served(r.Err)}
	}
	return epoch, out, nil
}

// Reseal implements custodian.Cryptoservers.
func (s CustodianServers) Reseal(ctx context.Context, from, to envelope.KeyRecord, blocks []envelope.SealedBlock) ([]custodian.ResealResult, error) {
	results, err := s.Pool.Reseal(ctx, from, to, blocks)
	if err != nil {
		return nil, served(err)
	}
	out := make([]custodian.ResealResult, len(results))
	for i, r := range results {
		out[i] = custodian.ResealResult{Ciphertext: r.Ciphertext, Err: served(r.Err)}
	}
	return out, nil
}
