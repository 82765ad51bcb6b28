package backend

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"kluis/cryptoserver/client"
	"kluis/cryptoserver/envelope"
	"kluis/custodian"
	"kluis/ingest"
	"kluis/internal/postgres"
	"kluis/meter"
)

type failingSealer struct {
	ingest.Sealer
	err error
}

func (f failingSealer) Seal(context.Context, meter.EAN, []envelope.KeyRecord, []envelope.PlainBlock) ([]envelope.SealedContent, error) {
	return nil, f.err
}

// TestErasedWhileSealing: an import whose data key is erased on the way starts
// over, and for nothing else.
func TestErasedWhileSealing(t *testing.T) {
	t.Parallel()
	for err, want := range map[error]bool{client.ErrErased: true, client.ErrUnavailable: false, client.ErrRefused: false, context.Canceled: false} {
		_, got := IngestSealer{failingSealer{err: fmt.Errorf("x: %w", err)}}.Seal(t.Context(), meter.EAN{}, nil, nil)
		if errors.Is(got, ingest.ErrConflict) != want || !errors.Is(got, err) {
			t.Errorf("%v: %v", err, got)
		}
	}
}

// TestCustodianErrors: what the custodian decides by survives the adapters.
func TestCustodianErrors(t *testing.T) {
	t.Parallel()
	for from, want := range map[error]error{
		postgres.ErrConflict: custodian.ErrConflict, postgres.ErrGone: custodian.ErrGone, postgres.ErrUnavailable: custodian.ErrUnavailable,
	} {
		if got := stored(fmt.Errorf("x: %w", from)); !errors.Is(got, want) || !errors.Is(got, from) {
			t.Errorf("%v becomes %v", from, got)
		}
	}
	for from, want := range map[error]error{
		client.ErrControlFork: custodian.ErrFork, client.ErrErased: custodian.ErrErased, client.ErrDamaged: custodian.ErrDamaged,
		client.ErrKeyRecord: custodian.ErrDamaged, client.ErrUnavailable: custodian.ErrUnavailable,
	} {
		if got := served(fmt.Errorf("x: %w", from)); !errors.Is(got, from) || !errors.Is(got, want) {
			t.Errorf("%v becomes %v", from, got)
		}
	}
	for _, f := range []func(error) error{stored, served} {
		if err := f(nil); err != nil {
			t.Errorf("nil becomes %v", err)
		}
		if err := f(context.Canceled); err != context.Canceled {
			t.Errorf("%v", err)
		}
	}
}
