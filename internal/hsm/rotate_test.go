package hsm_test

import (
	"bytes"
	"errors"
	"testing"

	"kluis/cryptoserver/token"
	"kluis/internal/hsm"
	"kluis/internal/testing/hsmtest"
)

// rewrap rewraps and looks at every result.
func rewrap(t testing.TB, h *hsm.HSM, keys []token.WrappedKey, to uint32) []token.WrappedKey {
	t.Helper()
	got, err := h.Rotator().Rewrap(t.Context(), keys, to)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(keys) {
		t.Fatalf("%d keys for %d", len(got), len(keys))
	}
	out := make([]token.WrappedKey, len(keys))
	for i, g := range got {
		if g.Err != nil {
			t.Fatalf("key %d: %v", i, g.Err)
		}
		out[i] = token.WrappedKey{ID: keys[i].ID, Epoch: to, Wrapped: g.Wrapped}
	}
	return out
}

func TestRewrapSameEpoch(t *testing.T) {
	t.Parallel()
	h := hsmtest.New(t).Servers[0].Open(t)
	keys := mintKeys(t, h, 100)
	for i, k := range rewrap(t, h, keys, 1) {
		if !bytes.Equal(k.Wrapped, keys[i].Wrapped) {
			t.Fatalf("key %d came out differently", i)
		}
	}
	if _, err := h.Rotator().Rewrap(t.Context(), keys, 2); !errors.Is(err, token.ErrUnknownEpoch) {
		t.Errorf("an epoch the token lacks: %v", err)
	}
}
