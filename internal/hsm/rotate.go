package hsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"kluis/cryptoserver/token"

	"github.com/miekg/pkcs11"
)

// maxRewrap bounds the keys of one call; it keeps the token for about 200 us each.
const maxRewrap = 4096

// rewrapping is one Rewrap, laid out flat. It holds wrapped keys only and
// belongs to the job: a caller that leaves takes nothing away from the module.
type rewrapping struct {
	to      uint32
	in, out []byte // wrappedSize for each key
	epochs  []uint32
	items   []rewrapItem
	errs    []error
}

func newRewrapping(keys []token.WrappedKey, to uint32) *rewrapping {
	r := &rewrapping{to: to, in: make([]byte, len(keys)*wrappedSize), out: make([]byte, len(keys)*wrappedSize),
		epochs: make([]uint32, len(keys)), items: make([]rewrapItem, len(keys)), errs: make([]error, len(keys))}
	for i := range keys {
		r.epochs[i] = keys[i].Epoch
		r.items[i] = rewrapItem{rv: notRun, wrapped: cUint32(i * wrappedSize), wrapped_len: cUint32(len(keys[i].Wrapped))}
		copy(r.in[i*wrappedSize:], keys[i].Wrapped[:min(len(keys[i].Wrapped), wrappedSize)])
	}
	return r
}

// rewrap does the whole job. As with Open, a key fails for good when it failed
// twice and the known vector of its epoch came out in between.
func (a *access) rewrap(r *rewrapping) error {
	if _, ok := a.keks[r.to]; !ok {
		return token.ErrUnknownEpoch
	}
	for i := range r.items {
		r.items[i].rv = notRun // what an earlier attempt came to
	}
	suspect, err := a.rewrapPass(r)
	if err != nil || len(suspect) == 0 {
		return err
	}
	defer a.worker.pool.doubt()()
	if err := a.sound(suspect); err != nil {
		return err
	}

	if _, err := a.rewrapPass(r); err != nil {
		return err
	}
	damaged := 0
	for i := range r.errs {
		if errors.Is(r.errs[i], token.ErrBadData) {
			damaged++
		}
	}
	a.metrics.damaged(damaged)
	return nil
}

// rewrapPass works through what did not succeed yet and names the epochs of
// what failed.
func (a *access) rewrapPass(r *rewrapping) (suspect map[uint32]bool, err error) {
	suspect = map[uint32]bool{}
	for i := range r.items {
		it := &r.items[i]
		kek, ok := a.keks[r.epochs[i]]
		it.kek = 0
		r.errs[i] = nil
		switch {
		case it.rv == 0: // in an earlier pass
		case it.wrapped_len != wrappedSize:
			r.errs[i] = token.ErrBadData
		case !ok:
			r.errs[i] = token.ErrUnknownEpoch
		default:
			it.kek, it.rv = cUint64(kek), notRun
		}
	}
	// Half as many as elsewhere: each is done and then proved.
	for from := 0; from < len(r.items); from += chunk / 2 {
		if a.left() {
			return nil, token.ErrUnavailable
		}
		part := r.items[from:min(from+chunk/2, len(r.items))]
		if err := a.call(func() error {
			n := a.shim.rewrap(a.work, a.keks[r.to], part, r.in, r.out[from*wrappedSize:], a.template)
			if n == len(part) {
				return nil
			}
			if part[n].rv == mismatch {
				return fmt.Errorf("%w: a key under another KEK is another key", errCanary)
			}
			return pkcs11.Error(part[n].rv)
		}); err != nil {
			return nil, err
		}
		a.made(2 * len(part)) // each is unwrapped from either KEK
		for i := range part {
			if part[i].kek == 0 {
				continue
			}
			a.used(pkcs11.ObjectHandle(part[i].kek), 1)
			if part[i].rv != 0 {
				r.errs[from+i] = token.ErrBadData
				suspect[r.epochs[from+i]] = true
				continue
			}
			a.used(a.keks[r.to], 1)
		}
	}
	return suspect, nil
}

// roundTrip rewraps the probe key under its own epoch. AES key wrap has no
// randomness, so the same bytes must come out, and only this KEK, which the
// probe was made with, unwraps them.
func (a *access) roundTrip(epoch uint32) error {
	p, ok := a.probes[epoch]
	if !ok {
		return fmt.Errorf("%w: no probe of epoch %d", errCanary, epoch)
	}
	items := []rewrapItem{{kek: cUint64(a.keks[epoch]), rv: notRun, wrapped_len: wrappedSize}}
	var out [wrappedSize]byte
	return a.call(func() error {
		switch a.shim.rewrap(a.work, a.keks[epoch], items, p.wrapped[:], out[:], a.template); {
		case items[0].rv == mismatch:
			return errCanary
		case items[0].rv != 0:
			return pkcs11.Error(items[0].rv)
		case !bytes.Equal(out[:], p.wrapped[:]):
			return errCanary
		}
		return nil
	})
}

// rewrap implements token.Rotator for one token.
func (p *pool) rewrap(ctx context.Context, keys []token.WrappedKey, to uint32) ([]token.Rewrapped, error) {
	if len(keys) > maxRewrap {
		return nil, fmt.Errorf("%d keys to rewrap, at most %d may be at once: %w", len(keys), maxRewrap, token.ErrBadData)
	}
	if len(keys) == 0 {
		return nil, nil
	}
	r := newRewrapping(keys, to)
	if _, err := p.do(ctx, "rewrap", len(keys), func(a *access) error { return a.rewrap(r) }, func() {}); err != nil {
		return nil, err
	}
	out := make([]token.Rewrapped, len(keys))
	for i := range out {
		if out[i].Err = r.errs[i]; out[i].Err == nil {
			out[i].Wrapped = r.out[i*wrappedSize : (i+1)*wrappedSize : (i+1)*wrappedSize]
		}
	}
	return out, nil
}
