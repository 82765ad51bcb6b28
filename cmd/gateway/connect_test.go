package main

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"kluis/cryptoserver/client"
	"kluis/server"
)

// TestOpenErrors: what a failure of the cryptoservers is to a caller. A pool
// whose queues are full is a 503 with Retry-After, as one that is away.
func TestOpenErrors(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ from, to error }{
		{client.ErrUnavailable, server.ErrNoCryptoserver},
		{fmt.Errorf("%w: %w", client.ErrBusy, client.ErrUnavailable), server.ErrNoCryptoserver},
		{client.ErrInternal, server.ErrNoCryptoserver},
		{client.ErrUnknownEpoch, server.ErrNoCryptoserver},
		{context.DeadlineExceeded, server.ErrNoCryptoserver},
		{client.ErrEvidence, server.ErrEvidenceRefused},
		{client.ErrTokenRefused, server.ErrTokenRefused},
		{client.ErrSupplierRefused, server.ErrTokenRefused},
	} {
		got := openError(fmt.Errorf("x: %w", c.from))
		for _, to := range []error{server.ErrNoCryptoserver, server.ErrEvidenceRefused, server.ErrTokenRefused} {
			if errors.Is(got, to) != (to == c.to) {
				t.Errorf("%v becomes %v", c.from, got)
			}
		}
	}
}
