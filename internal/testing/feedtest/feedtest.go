// Package feedtest is the key custodian of tests: without a recent control feed
// a cryptoserver opens, seals, mints and rewraps nothing. The feed lives in
// memory only; signing it and taking it in are the servers' own.
package feedtest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"kluis/cryptoserver/client"
	"kluis/cryptoserver/control"
)

// patience is how long the first head may take to reach the servers, which may
// still be starting.
const patience = 10 * time.Second

// Feed is a control feed and its only writer. Safe for concurrent use.
type Feed struct {
	client *client.Client

	mu      sync.Mutex
	head    control.Head
	entries [][]byte
	signed  []byte // the newest head
}

// New is an empty feed. The client has an identity that the servers allow
// SignControl and PutControl, as a rule "custodian".
func New(c *client.Client) *Feed { return &Feed{client: c} }

// Start is Run until the test ends.
func Start(t testing.TB, c *client.Client) *Feed {
	t.Helper()
	f, stop, err := Run(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return f
}

// Run activates KEK epoch 1 on every server of the client and sends a heartbeat
// every second until stop. All servers must be there at first; one that comes
// back later gets the feed with the next heartbeat.
func Run(c *client.Client) (_ *Feed, stop func(), err error) {
	f := New(c)
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		if f.Head().Sequence == 0 {
			_, err = f.Append(context.Background(), control.Entry{At: time.Now(), Kind: control.ActivateEpoch, Epoch: 1})
		} else {
			_, err = f.Beat(context.Background())
		}
		if err == nil {
			break
		}
		if time.Now().After(end) {
			return nil, nil, fmt.Errorf("the cryptoservers did not take in the control feed: %w", err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				_, _ = f.Beat(ctx) // who is away gets the next one
			}
		}
	}()
	return f, func() { cancel(); <-done }, nil
}

// Append adds an entry and sends it to every server; n is how many took it in.
func (f *Feed) Append(ctx context.Context, e control.Entry) (n int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := e.Encode()
	if err != nil {
		return 0, err
	}
	signed, err := f.client.SignControl(ctx, f.head, b)
	if err != nil {
		return 0, err
	}
	f.head = control.Head{Sequence: f.head.Sequence + 1, Hash: f.head.Hash.Next(b)}
	f.entries, f.signed = append(f.entries, b), signed
	return f.push(ctx)
}

// Beat sends a heartbeat to every server; n is how many took it in.
func (f *Feed) Beat(ctx context.Context) (n int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	signed, err := f.client.SignControl(ctx, f.head, nil)
	if err != nil {
		return 0, err
	}
	f.signed = signed
	return f.push(ctx)
}

// Relay returns what a relay of the feed has in hand: all entries and the
// newest signed head.
func (f *Feed) Relay() (entries [][]byte, head []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.entries[:len(f.entries):len(f.entries)], f.signed
}

// Use goes on with another client, of other servers or more.
func (f *Feed) Use(c *client.Client) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.client = c
}

// Head is where the feed ends, without a time.
func (f *Feed) Head() control.Head {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.head
}

func (f *Feed) push(ctx context.Context) (n int, err error) {
	var wg sync.WaitGroup
	addresses := f.client.Addresses()
	errs := make([]error, len(addresses))
	for i, a := range addresses {
		wg.Go(func() {
			known, err := f.client.PutControl(ctx, a, 1, f.entries, f.signed)
			if err == nil && known != f.head.Sequence {
				err = fmt.Errorf("it knows entry %d of %d", known, f.head.Sequence)
			}
			if err != nil {
				errs[i] = fmt.Errorf("%s: %w", a, err)
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err == nil {
			n++
		}
	}
	return n, errors.Join(errs...)
}
