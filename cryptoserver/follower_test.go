package cryptoserver

import (
	"context"
	"testing"
	"time"

	"kluis/cryptoserver/control"
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
