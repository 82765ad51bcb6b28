package cryptoserver

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kluis/authz"
	"kluis/cryptoserver/control"
	"kluis/cryptoserver/cryptopb"
	"kluis/cryptoserver/token"
)

type forgetting func()

func (f forgetting) Forget(context.Context) error {
	f()
	return nil
}

// TestErasureDuringErasure: what is erased while the tokens forget what was
// erased before needs another forgetting.
func TestErasureDuringErasure(t *testing.T) {
	t.Parallel()
	head := control.Head{At: time.Unix(1718445600, 0)}
	f := &follower{Feed: control.NewFeed()}
	erase := func() {
		entry, err := control.Entry{
			At: head.At, Kind: control.EraseKeys, Cause: control.CauseRequest, Keys: []control.KeyID{{byte(head.Sequence)}},
		}.Encode()
		if err != nil {
			t.Fatal(err)
		}
		head.Sequence, head.Hash = head.Sequence+1, head.Hash.Next(entry)
		if err := f.advance(head, head.Sequence, [][]byte{entry}); err != nil {
			t.Fatal(err)
		}
	}
	forgot := 0
	f.holders = []token.Forgetter{forgetting(func() {
		if forgot++; forgot == 1 {
			erase()
		}
	})}
	settle := func(want int) {
		t.Helper()
		if err := f.settle(t.Context()); err != nil || forgot != want {
			t.Errorf("%v, forgot %d times, want %d", err, forgot, want)
		}
	}
	settle(0)
	ended := f.use()
	erase()
	late, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := f.settle(late); err == nil || forgot != 0 {
		t.Errorf("done with a call from before in progress: %v, forgot %d times", err, forgot)
	}
	ended()
	settle(1)
	settle(2)
	settle(2)
}

// headSigner signs heads with a key made for the test.
type headSigner struct{ key *ecdsa.PrivateKey }

func (s headSigner) KeyID() authz.KeyID { return authz.KeyIDOf(&s.key.PublicKey) }

func (s headSigner) SignDigest(digest [32]byte) (sig [64]byte, err error) {
	r, v, err := ecdsa.Sign(rand.Reader, s.key, digest[:])
	if err == nil {
		r.FillBytes(sig[:32])
		v.FillBytes(sig[32:])
	}
	return sig, err
}

// TestOvertakenMeanwhile: a head that a longer feed overtakes while it is being
// looked at is a lost race, and no fork.
func TestOvertakenMeanwhile(t *testing.T) {
	t.Parallel()
	at := time.Unix(1718445600, 0).UTC()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := authz.NewSealKeys(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	m, err := newMetrics(prometheus.NewRegistry(), control.NewFeed(), nil, newPoints(0), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	s := &Server{control: &follower{Feed: control.NewFeed()}, sealKeys: keys, now: func() time.Time { return at }, log: log,
		health: newMonitor(nil, func() bool { return true }, nil, time.Second, log, m)}
	var entries [][]byte
	heads := []control.Head{{At: at}}
	for epoch := range uint32(2) {
		b, err := control.Entry{At: at, Kind: control.ActivateEpoch, Epoch: epoch + 1}.Encode()
		if err != nil {
			t.Fatal(err)
		}
		last := heads[len(heads)-1]
		entries, heads = append(entries, b), append(heads, control.Head{Sequence: last.Sequence + 1, Hash: last.Hash.Next(b), At: at})
	}
	short, err := heads[1].Sign(headSigner{key})
	if err != nil {
		t.Fatal(err)
	}
	// The shorter one waits to be taken in while the longer one is.
	s.control.mu.Lock()
	done := make(chan error, 1)
	go func() {
		resp, err := s.PutControl(context.Background(), &cryptopb.PutControlRequest{First: 1, Entries: entries[:1], Head: short})
		if err == nil && resp.Sequence != 2 {
			t.Errorf("acknowledged %d", resp.Sequence)
		}
		done <- err
	}()
	time.Sleep(100 * time.Millisecond) // later it would be overtaken before, and the test shows nothing
	_, err = s.control.Advance(heads[2], 1, entries)
	s.control.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
