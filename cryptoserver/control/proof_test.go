package control_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"
	"time"

	"kluis/authz"
	"kluis/cryptoserver/control"
)

// proven is an entry in a feed, with what stands around it.
func proven(t testing.TB) (before control.Hash, entry, head []byte, keys *authz.SealKeys) {
	t.Helper()
	s := newSigner(t)
	keys = pin(t, s)
	at := time.Unix(1718445600, 0).UTC()
	entry = encode(t, control.Entry{At: at, Kind: control.DestroyEpoch, Epoch: 1})
	before = control.Hash{1, 2, 3}
	head, err := control.Head{Sequence: 8, Hash: before.Next(entry), At: at}.Sign(s)
	if err != nil {
		t.Fatal(err)
	}
	return before, entry, head, keys
}

func TestProof(t *testing.T) {
	t.Parallel()
	before, entry, head, keys := proven(t)
	good := control.EncodeProof(before, entry, head)
	if e, err := control.OpenProof(good, keys); err != nil || e.Kind != control.DestroyEpoch || e.Epoch != 1 {
		t.Fatalf("%+v, %v", e, err)
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if _, err := control.OpenProof(bad, keys); err == nil {
			t.Errorf("byte %d of %d may be any", i, len(good))
		}
	}
	other := encode(t, control.Entry{At: time.Unix(1718445600, 0), Kind: control.DestroyEpoch, Epoch: 2})
	_, _, _, strange := proven(t)
	for name, c := range map[string]struct {
		proof []byte
		keys  *authz.SealKeys
		want  error
	}{
		"another entry":           {control.EncodeProof(before, other, head), keys, control.ErrProof},
		"another place":           {control.EncodeProof(control.Hash{}, entry, head), keys, control.ErrProof},
		"keys that are not these": {good, strange, control.ErrHead},
		"a byte more":             {append(bytes.Clone(good), 0), keys, control.ErrProof},
		"nothing":                 {nil, keys, control.ErrProof},
		"a head only":             {head, keys, control.ErrProof},
	} {
		if _, err := control.OpenProof(c.proof, c.keys); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The format: domain, version, the chain before, entry and head with their
	// lengths.
	const want = "000000136b6c7569732f636f6e74726f6c2d70726f6f6601ab000000000000000000000000000000000000000000000000000000000000000000000201020000000103"
	if got := hex.EncodeToString(control.EncodeProof(control.Hash{0xab}, []byte{1, 2}, []byte{3})); got != want {
		t.Errorf("%s", got)
	}
}

func FuzzOpenProof(f *testing.F) {
	before, entry, head, keys := proven(f)
	f.Add(control.EncodeProof(before, entry, head))
	f.Add(control.EncodeProof(control.Hash{}, nil, nil))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := control.OpenProof(b, keys); err == nil && !bytes.Equal(b, control.EncodeProof(before, entry, head)) {
			t.Errorf("opens: %x", b)
		}
	})
}
