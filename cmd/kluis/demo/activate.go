package demo

import (
	"context"
	"fmt"
	"log/slog"

	"kluis/cmd/kluis/backend"
	"kluis/internal/config"
)

// activate makes the first epoch the active one, unless one is, and waits until
// every cryptoserver has the control feed, so that all of them serve.
func (d *demo) activate(ctx context.Context, operator config.Operator) error {
	k, err := backend.OpenCustodian(ctx, operator, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer k.Close()
	st, err := k.Status(ctx)
	if err != nil {
		return err
	}
	epoch := max(st.ActiveEpoch, firstEpoch)
	acks, err := k.Activate(ctx, epoch) // of the active one: tells it again
	if err != nil {
		return err
	}
	for _, a := range acks {
		if a.Err != nil {
			return fmt.Errorf("cryptoserver %s does not take in the control feed: %w", a.Address, a.Err)
		}
	}
	if st.ActiveEpoch == 0 {
		d.say("keys: epoch %d is active", epoch)
	}
	return ctx.Err()
}
