package postgres

import (
	"context"
	"database/sql"
	"errors"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"

	"kluis/authz"
	"kluis/internal/audit"
	"kluis/meter"
)

const (
	// A consent's id is at one metering point, unless somebody made it so by
	// hand: whoever asks looks into the files.
	queryConsent = `
		SELECT c.ean, f.version, f.file
		FROM (SELECT ean FROM consent WHERE consent_id = $1 AND gln = $2 ORDER BY ean LIMIT 4) c
		CROSS JOIN LATERAL (SELECT version, file FROM legal_file l WHERE l.ean = c.ean ORDER BY version DESC LIMIT 2) f
		ORDER BY c.ean, f.version DESC`
	queryIdempotency = `SELECT request, uuid_send(consent_id) FROM idempotency_key WHERE gln = $1 AND key_digest = $2`
	execIdempotency  = `INSERT INTO idempotency_key (gln, key_digest, request, consent_id) VALUES ($1, $2, $3, $4)`
)

// Consent lists the metering points at which the index has a consent of this
// id for the supplier: one or none, if nobody meddled. That is no evidence; a
// legal file may be.
func (g *Gateway) Consent(ctx context.Context, supplier meter.GLN, id [16]byte) ([]Candidate, error) {
	const op = "consent"
	rows, err := g.consent.QueryxContext(ctx, uuid.UUID(id).String(), supplier.Int64())
	if err != nil {
		return nil, wrap(ctx, op, err)
	}
	defer rows.Close()
	var out []Candidate
	for rows.Next() {
		var ean, version int64
		var file []byte
		if err := rows.Scan(&ean, &version, &file); err != nil {
			return nil, wrap(ctx, op, err)
		}
		at, err := meter.EANFromInt64(ean)
		if err != nil {
			continue // put there by hand
		}
		if n := len(out); n == 0 || out[n-1].EAN != at {
			out = append(out, Candidate{EAN: at})
		}
		addRow(&out[len(out)-1].LegalFile, version, file)
	}
	return out, wrap(ctx, op, rows.Err())
}

// IdempotencyKey is a request that changed a consent, by the key its caller
// gave it.
type IdempotencyKey struct {
	Caller  meter.GLN
	Key     [32]byte // SHA-256 of the key
	Request [32]byte // SHA-256 of what was asked
	Consent [16]byte // the one changed
}

// IdempotencyKey returns what was stored under a caller's key; nil when nothing
// was.
func (g *Gateway) IdempotencyKey(ctx context.Context, caller meter.GLN, key [32]byte) (*IdempotencyKey, error) {
	const op = "idempotency key"
	var request, consent []byte
	err := g.idempotency.QueryRowxContext(ctx, caller.Int64(), key[:]).Scan(&request, &consent)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, nil
	case err != nil:
		return nil, wrap(ctx, op, err)
	}
	k := &IdempotencyKey{Caller: caller, Key: key}
	copy(k.Request[:], request)
	copy(k.Consent[:], consent)
	return k, nil
}

// StoreStep adds a version of a legal file, which sealed is of, makes the index
// of consents say what it says, and stores the request's idempotency key and
// its access record: all of it or, after an error, nothing. Only after
// ErrUnavailable and a context's end it is not known which.
//
// ErrConflict: the version, the key or a record of the interaction is there
// already. Supply periods stay as they are: no step of a consent changes them.
func (g *Gateway) StoreStep(ctx context.Context, f *authz.LegalFile, sealed []byte, k IdempotencyKey, r audit.Record) error {
	args, err := recordArgs(r)
	if err != nil {
		return err
	}
	ean := f.EAN().Int64()
	return g.transact(ctx, "store step", func(ctx context.Context, tx *sqlx.Tx) error {
		// First, so that a second writer of the version stops here.
		if _, err := tx.ExecContext(ctx, execLegalFile, ean, int64(f.Version()), sealed, f.SealedAt().UnixMicro()); err != nil {
			return err
		}
		if err := indexConsents(ctx, tx, ean, f.Consents()); err != nil {
			return err
		}
		if err := indexBasisDays(ctx, tx, f); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, execIdempotency, k.Caller.Int64(), k.Key[:], k.Request[:], uuid.UUID(k.Consent).String())
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, queryRecord, args...)
		return err
	})
}
