package hsm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"kluis/cryptoserver/token"
	"kluis/internal/hsm"
	"kluis/internal/testing/hsmtest"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if file := os.Getenv(errandVariable); file != "" {
		os.Exit(runErrand(file))
	}
	code := hsmtest.Main(tests{m})
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// mintKeys mints n data keys.
func mintKeys(t testing.TB, h *hsm.HSM, n int) []token.WrappedKey {
	t.Helper()
	const epoch = 1
	wrapped, err := h.Minter().Mint(t.Context(), epoch, n)
	if err != nil {
		t.Fatal(err)
	}
	keys := make([]token.WrappedKey, n)
	for i := range keys {
		keys[i] = token.WrappedKey{ID: [16]byte{byte(i), byte(i >> 8)}, Epoch: epoch, Wrapped: wrapped[i]}
	}
	return keys
}

// plaintext of item i; the lengths differ and one is empty.
func plaintext(i int) []byte { return bytes.Repeat([]byte{byte(i)}, i%97) }

func aad(i int) []byte { return fmt.Appendf(nil, "block %d", i) }

// sealItems seals n plaintexts, item i under key i%len(keys), and returns them
// ready to open.
func sealItems(t testing.TB, h *hsm.HSM, keys []token.WrappedKey, n int) []token.Item {
	t.Helper()
	items := make([]token.Item, n)
	for i := range items {
		in := plaintext(i)
		items[i] = token.Item{Key: i % len(keys), AAD: aad(i), In: in, Out: make([]byte, 0, len(in)+16)}
	}
	if err := h.Sealer().Seal(t.Context(), keys, items); err != nil {
		t.Fatal(err)
	}
	for i := range items {
		it := &items[i]
		if it.Err != nil {
			t.Fatalf("item %d: %v", i, it.Err)
		}
		if len(it.IV) != 12 || len(it.Out) != len(it.In)+16 {
			t.Fatalf("item %d: IV of %d, output of %d bytes for %d", i, len(it.IV), len(it.Out), len(it.In))
		}
		it.In, it.Out = it.Out, make([]byte, 0, len(it.In))
	}
	return items
}

func TestRoundTripAcrossServers(t *testing.T) {
	t.Parallel()
	world := hsmtest.New(t)
	one, two := world.Servers[0].Open(t), world.Servers[1].Open(t)
	keys := mintKeys(t, one, 300)         // as for keys
	items := sealItems(t, one, keys, 600) // more than one crossing holds
	if err := two.Opener().Open(context.Background(), keys, items); err != nil {
		t.Fatal(err)
	}
	for i, it := range items {
		if it.Err != nil || !bytes.Equal(it.Out, plaintext(i)) {
			t.Fatalf("item %d: %v, %x", i, it.Err, it.Out)
		}
	}
	many := make([]token.WrappedKey, 16385)
	if err := two.Opener().Open(t.Context(), many, items[:1]); !errors.Is(err, token.ErrBadData) {
		t.Errorf("%d keys in a batch: %v", len(many), err)
	}
	messages := [][]byte{nil, []byte("a"), bytes.Repeat([]byte("b"), 5000)}
	a, err := one.Minter().RecordMAC(t.Context(), messages)
	if err != nil {
		t.Fatal(err)
	}
	b, err := two.Sealer().RecordMAC(t.Context(), messages)
	if err != nil {
		t.Fatal(err)
	}
	c, err := two.Sealer().ContentMAC(t.Context(), messages)
	if err != nil {
		t.Fatal(err)
	}
	for i := range messages {
		if a[i] != b[i] {
			t.Errorf("message %d: record MACs of mint and seal differ", i)
		}
		if b[i] == c[i] {
			t.Errorf("message %d: record and content MAC are equal", i)
		}
	}
	if one.TokenSigner() == nil || errors.Join(one.Opener().Check(t.Context()), one.Sealer().Check(t.Context()),
		one.Minter().Check(t.Context()), one.TokenSigner().Check(t.Context())) != nil {
		t.Error("a healthy token is not")
	}
}

// TestBatchIsCleared: the buffers of a batch are used again, without what was
// in them.
func TestBatchIsCleared(t *testing.T) {
	t.Parallel()
	// So large that it does not go back to the pool, where another test would find it.
	in, out, err := hsm.Released(bytes.Repeat([]byte("reading"), 1<<19))
	if err != nil {
		t.Fatal(err)
	}
	if len(in) == 0 || len(out) == 0 || !bytes.Equal(in, make([]byte, len(in))) || !bytes.Equal(out, make([]byte, len(out))) {
		t.Error("something is left behind")
	}
}
