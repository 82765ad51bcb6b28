package main

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"kluis/cryptoserver/client"
	"kluis/server"
)

// A step that a clock far ahead sealed is not stored: nothing could be sealed on
// it before that time. By another clock, and under the same key, it is taken.
func TestStepOfAClockAhead(t *testing.T) {
	t.Parallel()
	var behind atomic.Int64
	w := newWorld(t, options{now: func() time.Time { return time.Now().Add(-time.Duration(behind.Load())) }})
	e := w.customer(1, w.a)
	key := newKey()
	send := func() reply { return w.post(w.a, w.token(w.a), "/v1/consents", w.form(e, nil), "Idempotency-Key", key) }
	w.tap.seal = func(ctx context.Context, r server.StepRequest, real server.Sealer) ([]byte, error) {
		sealed, err := real.TakeStep(ctx, r)
		behind.Store(int64(2 * time.Minute))
		return sealed, err
	}
	r := send()
	behind.Store(0)
	if r.status != 503 || r.problem(t) != "sealing-unavailable" || r.header.Get("Retry-After") == "" {
		t.Errorf("%d %s", r.status, r.body)
	}
	if log := w.log.String(); !strings.Contains(log, "sealed in the future") || !strings.Contains(log, "set the clock of the cryptoserver") {
		t.Error("the log does not say which clock")
	}
	w.stands(e, 3, "")
	// A little ahead is as good as right.
	w.tap.seal = func(ctx context.Context, r server.StepRequest, real server.Sealer) ([]byte, error) {
		sealed, err := real.TakeStep(ctx, r)
		behind.Store(int64(30 * time.Second))
		return sealed, err
	}
	w.consentOf(send(), 201)
	w.stands(e, 4, "1")
}

// Where every server's clock is behind the last version's time, that is no fault
// of the step: it may be tried again.
func TestClocksBehind(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a)
	w.tap.seal = func(context.Context, server.StepRequest, server.Sealer) ([]byte, error) {
		return nil, openError(fmt.Errorf("%w: %w", client.ErrClockBehind, client.ErrUnavailable))
	}
	if r := w.post(w.a, w.token(w.a), "/v1/consents", w.form(e, nil)); r.status != 503 || r.problem(t) != "sealing-unavailable" {
		t.Errorf("%d %s", r.status, r.body)
	}
	w.stands(e, 3, "")
}
