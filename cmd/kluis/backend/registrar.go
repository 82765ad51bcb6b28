package backend

import (
	"context"
	"errors"
	"fmt"
	"time"

	"kluis/authz"
	"kluis/cryptoserver/client"
	"kluis/internal/config"
	"kluis/internal/postgres"
	"kluis/meter"
)

// changeTries is how often a change starts over when another writer sealed the
// same version first.
const changeTries = 5

// Registrar keeps suppliers' records and legal files.
type Registrar struct {
	Profile *meter.Profile

	keys   *authz.SealKeys
	sealer factSealer
	store  factStore
	now    func() time.Time
	closer func() error
}

// factSealer seals the next version of a fact inside the HSM; previous is nil
// for the first. client.Client implements it.
type factSealer interface {
	SealStep(ctx context.Context, previous []byte, step authz.Step) ([]byte, error)
	SealSupplier(ctx context.Context, previous []byte, facts authz.SupplierFacts) ([]byte, error)
}

// factStore keeps all versions of the facts. The current version is nil (of a
// legal file: zero) where there is none; storing a version that is there is postgres.ErrConflict.
// postgres.Registrar implements it.
type factStore interface {
	Supplier(ctx context.Context, gln meter.GLN) ([]byte, error)
	LegalFile(ctx context.Context, ean meter.EAN) (authz.StoredFile, error)
	StoreSupplier(ctx context.Context, s *authz.Supplier, sealed []byte) error
	StoreLegalFile(ctx context.Context, f *authz.LegalFile, sealed []byte) error
}

// OpenRegistrar connects as the registrar.
func OpenRegistrar(ctx context.Context, c config.Operator) (*Registrar, error) {
	p, err := Profile(c)
	if err != nil {
		return nil, err
	}
	keys, err := sealKeys(c)
	if err != nil {
		return nil, err
	}
	dsn, err := database("registrar_url", c.RegistrarURL, c.PasswordFile)
	if err != nil {
		return nil, err
	}
	servers, err := cryptoservers("registrar", c.Registrar)
	if err != nil {
		return nil, err
	}
	store, err := postgres.NewRegistrar(ctx, dsn)
	if err != nil {
		return nil, errors.Join(err, servers.Close())
	}
	r := newRegistrar(p, keys, servers, store)
	r.closer = func() error { return errors.Join(servers.Close(), store.Close()) }
	return r, nil
}

func newRegistrar(p *meter.Profile, keys *authz.SealKeys, sealer factSealer, store factStore) *Registrar {
	return &Registrar{Profile: p, keys: keys, sealer: sealer, store: store, now: time.Now, closer: func() error { return nil }}
}

// Close ends the connections.
func (r *Registrar) Close() error { return r.closer() }

var _ factSealer = (*client.Client)(nil)
var _ factStore = (*postgres.Registrar)(nil)

// ErrUnknownSupplier says that a supplier has no record.
var ErrUnknownSupplier = errors.New("supplier not registered: register it first with kluis supplier add")

// Supplier returns a supplier's verified record; ErrUnknownSupplier when there
// is none.
func (r *Registrar) Supplier(ctx context.Context, gln meter.GLN) (*authz.Supplier, error) {
	s, _, err := r.supplier(ctx, gln)
	if err == nil && s == nil {
		err = ErrUnknownSupplier
	}
	return s, err
}

func (r *Registrar) supplier(ctx context.Context, gln meter.GLN) (*authz.Supplier, []byte, error) {
	sealed, err := r.store.Supplier(ctx, gln)
	if err != nil || sealed == nil {
		return nil, nil, err
	}
	s, err := r.verifySupplier(sealed, gln)
	return s, sealed, err
}

func (r *Registrar) verifySupplier(sealed []byte, gln meter.GLN) (*authz.Supplier, error) {
	s, err := r.keys.Supplier(sealed)
	if err != nil {
		return nil, fmt.Errorf("supplier record: %w", err)
	}
	if s.GLN() != gln {
		return nil, fmt.Errorf("supplier record: %w: it is of another supplier", authz.ErrSeal)
	}
	return s, nil
}

// ChangeSupplier seals and stores the next version of a supplier's record.
// change gets the current one, nil when there is none, and says what the next
// is to say. It may be called again when another writer was faster.
func (r *Registrar) ChangeSupplier(ctx context.Context, gln meter.GLN, change func(current *authz.Supplier) (authz.SupplierFacts, error)) (*authz.Supplier, error) {
	for try := 1; ; try++ {
		current, sealed, err := r.supplier(ctx, gln)
		if err != nil {
			return nil, err
		}
		facts, err := change(current)
		if err != nil {
			return nil, err
		}
		s, next, err := inTime(r, (*authz.Supplier).SealedAt, func() (*authz.Supplier, []byte, error) {
			next, err := r.sealer.SealSupplier(ctx, sealed, facts)
			if err != nil {
				return nil, nil, err
			}
			s, err := r.verifySupplier(next, gln)
			return s, next, err
		})
		if err != nil {
			return nil, err
		}
		err = r.store.StoreSupplier(ctx, s, next)
		if err == nil || try == changeTries || !errors.Is(err, postgres.ErrConflict) {
			return s, err
		}
	}
}

// ChangeLegalFile takes steps of a metering point's legal file. plan gets the
// current file, nil when there is none, and returns the steps; none leaves the
// file as it is. It may be called again when another writer was faster.
//
// All steps are sealed before the first version is stored, so that a step that
// is refused leaves nothing behind. Versions are stored one after another: if
// the database fails in between, what is stored is a valid file, and planning
// again goes on from there.
func (r *Registrar) ChangeLegalFile(ctx context.Context, ean meter.EAN, plan func(current *authz.LegalFile) ([]authz.Step, error)) (*authz.LegalFile, error) {
	for try := 1; ; try++ {
		f, err := r.changeLegalFile(ctx, ean, plan)
		if err == nil || try == changeTries || !errors.Is(err, postgres.ErrConflict) {
			return f, err
		}
	}
}

func (r *Registrar) changeLegalFile(ctx context.Context, ean meter.EAN, plan func(*authz.LegalFile) ([]authz.Step, error)) (*authz.LegalFile, error) {
	current, sealed, err := r.legalFile(ctx, ean)
	if err != nil {
		return nil, err
	}
	steps, err := plan(current)
	if err != nil {
		return nil, err
	}
	type version struct {
		file   *authz.LegalFile
		sealed []byte
	}
	var next []version
	for _, step := range steps {
		previous := sealed
		current, sealed, err = inTime(r, (*authz.LegalFile).SealedAt, func() (*authz.LegalFile, []byte, error) {
			next, err := r.sealer.SealStep(ctx, previous, step)
			if err != nil {
				return nil, nil, err
			}
			f, err := r.verifyLegalFile(next, ean)
			return f, next, err
		})
		if err != nil {
			return nil, err
		}
		next = append(next, version{current, sealed})
	}
	for _, v := range next {
		if err := r.store.StoreLegalFile(ctx, v.file, v.sealed); err != nil {
			return nil, err
		}
	}
	return current, nil
}

// ErrStrayFile: the newest row of a metering point's legal files is not the
// version that it says, or was not made from the version before it. Building on
// it would undo for good what somebody stored it over.
var ErrStrayFile = errors.New("legal file: nothing is built on it before that row is removed: kluis keys facts names it, and docs/KEY-LIFE.md says how")

// legalFile returns a metering point's newest legal file, verified, and that it
// follows on the version before it; nil when there is none.
func (r *Registrar) legalFile(ctx context.Context, ean meter.EAN) (*authz.LegalFile, []byte, error) {
	stored, err := r.store.LegalFile(ctx, ean)
	if err != nil || stored.Sealed == nil {
		return nil, nil, err
	}
	f, err := r.keys.StoredFile(stored, ean)
	if err != nil {
		return nil, nil, fmt.Errorf("%w (%w)", ErrStrayFile, err)
	}
	return f, stored.Sealed, nil
}

func (r *Registrar) verifyLegalFile(sealed []byte, ean meter.EAN) (*authz.LegalFile, error) {
	f, err := r.keys.LegalFile(sealed)
	if err != nil {
		return nil, fmt.Errorf("legal file: %w", err)
	}
	if f.EAN() != ean {
		return nil, fmt.Errorf("legal file: %w: it is of another metering point", authz.ErrSeal)
	}
	return f, nil
}

// inTime seals, and seals again while it was done by a server whose clock is
// ahead of ours: the pool may choose another one.
func inTime[T any](r *Registrar, sealedAt func(T) time.Time, seal func() (T, []byte, error)) (fact T, sealed []byte, err error) {
	for range changeTries {
		if fact, sealed, err = seal(); err != nil {
			return fact, nil, err
		}
		if err = authz.CheckSealedAt(sealedAt(fact), r.now()); err == nil {
			return fact, sealed, nil
		}
	}
	return fact, nil, fmt.Errorf("nothing was stored: %w", err)
}
