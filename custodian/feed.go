package custodian

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"kluis/cryptoserver/control"
)

const (
	feedPage  = 256     // entries of one statement
	chunkSize = 1 << 20 // bytes of entries in one call to a server
)

// sync brings the copy up to date with the database. ErrRolledBack: the
// database has less than the copy, or something else; ErrFeed: what it has
// beyond the copy does not verify.
func (c *Custodian) sync(ctx context.Context) error {
	// The copy is looked at first: it never is ahead of the database but when
	// that was put back.
	last := c.copy.last()
	after := uint64(0)
	if c.compared.Load() && last.Sequence > 0 {
		after = last.Sequence - 1 // the chain vouches for those before
	}
	for {
		page, err := calling(ctx, c.timing.call, func(ctx context.Context) ([]Appended, error) {
			return c.store.Feed(ctx, after, feedPage)
		})
		if err != nil {
			return fmt.Errorf("read the control feed: %w", err)
		}
		for i, a := range page {
			if want := after + 1 + uint64(i); a.Sequence != want {
				return fmt.Errorf("%w: it has no entry %d, but a later one", ErrRolledBack, want)
			}
		}
		if after+uint64(len(page)) < last.Sequence && len(page) < feedPage {
			return fmt.Errorf("%w: it ends with entry %d, and this custodian's copy with %d: run  kluis keys reapply",
				ErrRolledBack, after+uint64(len(page)), last.Sequence)
		}
		if err := c.copy.extend(page); err != nil {
			return err
		}
		after += uint64(len(page))
		if len(page) < feedPage {
			c.compared.Store(true)
			return nil
		}
	}
}

// signed is a head in both forms.
type signed struct {
	control.Head
	bytes []byte
}

// sign has the head of the feed as it is known signed, or that with one more
// entry.
func (c *Custodian) sign(ctx context.Context, from control.Head, entry []byte) (signed, error) {
	b, err := calling(ctx, c.timing.call, func(ctx context.Context) ([]byte, error) {
		return c.servers.SignControl(ctx, from, entry)
	})
	if err != nil {
		return signed{}, fmt.Errorf("have the head of the control feed signed: %w", err)
	}
	head, err := control.OpenHead(b, c.keys)
	if err != nil {
		return signed{}, fmt.Errorf("have the head of the control feed signed: %w", err)
	}
	want := control.Head{Sequence: from.Sequence, Hash: from.Hash, At: head.At}
	if entry != nil {
		want.Sequence, want.Hash = from.Sequence+1, from.Hash.Next(entry)
	}
	if head != want {
		return signed{}, errors.New("a cryptoserver signed another head of the control feed than it was asked to")
	}
	return signed{head, b}, nil
}

// append puts an entry at the end of the feed, in the database and in the copy.
// Of several that append at once each gets through in turn. An error other than
// ErrRolledBack leaves open whether it was appended; doing it again is right in
// either case.
func (c *Custodian) append(ctx context.Context, e control.Entry) (signed, error) {
	e.At = c.now().UTC()
	entry, err := e.Encode()
	if err != nil {
		return signed{}, err
	}
	if err := c.patiently(ctx, c.sync); err != nil {
		return signed{}, err
	}
	began := c.feed().Head().Sequence
	var last error
	for range c.timing.tries {
		if last != nil {
			if err := pause(ctx, c.timing.again/10); err != nil {
				return signed{}, errors.Join(last, err)
			}
			if err := c.sync(ctx); err != nil {
				if errors.Is(err, ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
					last = err
					continue
				}
				return signed{}, err
			}
			// A call that failed may have been done all the same.
			if a, err := c.find(began+1, entry); err != nil || a != nil {
				if err != nil {
					return signed{}, err
				}
				head, err := control.OpenHead(a.Head, c.keys)
				return signed{head, a.Head}, err
			}
		}
		from := c.feed().Head()
		if err := c.feed().Check(e); err != nil {
			return signed{}, fmt.Errorf("%w: %w", ErrRefused, err)
		}
		head, err := c.sign(ctx, from, entry)
		switch {
		case errors.Is(err, ErrFork) || errors.Is(err, ErrUnavailable) || errors.Is(err, context.DeadlineExceeded):
			last = err // somebody else appended meanwhile, or nobody signs
			continue
		case err != nil:
			return signed{}, err
		}
		a := Appended{Sequence: head.Sequence, Entry: entry, Head: head.bytes}
		_, err = calling(ctx, c.timing.call, func(ctx context.Context) (struct{}, error) { return struct{}{}, c.store.Append(ctx, a) })
		if err != nil {
			last = fmt.Errorf("append to the control feed: %w", err)
			if ctx.Err() != nil {
				return signed{}, last
			}
			continue
		}
		if err := c.copy.extend([]Appended{a}); err != nil {
			return signed{}, err
		}
		return head, nil
	}
	if errors.Is(last, ErrFork) {
		return signed{}, fmt.Errorf("%w: a cryptoserver knows more of it than database and copy: %w", ErrRolledBack, last)
	}
	return signed{}, last
}

// find looks for an entry in the copy; nil: it is not there.
func (c *Custodian) find(from uint64, entry []byte) (*Appended, error) {
	for {
		page, err := c.copy.read(from, chunkSize)
		if err != nil || len(page) == 0 {
			return nil, err
		}
		for i := range page {
			if bytes.Equal(page[i].Entry, entry) {
				return &page[i], nil
			}
		}
		from += uint64(len(page))
	}
}

// bring brings one server's feed up to a head. known is what the server is
// thought to know; bring corrects it.
func (c *Custodian) bring(ctx context.Context, address string, known *uint64, head signed) error {
	for tries := 0; ; {
		first, put := *known+1, head.bytes
		var entries [][]byte
		if *known < head.Sequence {
			page, err := c.copy.read(first, chunkSize)
			if err != nil {
				return err
			}
			for _, a := range page {
				if a.Sequence <= head.Sequence {
					entries = append(entries, a.Entry)
					// The head of an earlier entry says less than the newest,
					// but it is true of the entries so far.
					put = a.Head
				}
			}
			if uint64(len(entries)) == head.Sequence-*known {
				put = head.bytes
			}
		}
		has, err := calling(ctx, c.timing.call, func(ctx context.Context) (uint64, error) {
			return c.servers.PutControl(ctx, address, first, entries, put)
		})
		if err != nil {
			return err
		}
		if has >= head.Sequence {
			*known = has
			return nil
		}
		// It started anew, or was asked for the first time; more than a few
		// times it does not.
		if has <= *known {
			if tries++; tries > 3 {
				return fmt.Errorf("%s does not take in the control feed beyond entry %d", address, has)
			}
		}
		*known = has
	}
}

// push tells every server at once what the feed is, and waits a while for each
// to acknowledge.
func (c *Custodian) push(ctx context.Context, head signed) []Ack {
	ctx, cancel := context.WithTimeout(ctx, c.timing.ack)
	defer cancel()
	addresses := c.servers.Addresses()
	acks := make([]Ack, len(addresses))
	var wg sync.WaitGroup
	for i, address := range addresses {
		wg.Go(func() {
			acks[i].Address = address
			known := head.Sequence
			if known > 0 {
				known-- // most likely
			}
			for {
				err := c.bring(ctx, address, &known, head)
				acks[i].Err = err
				if err == nil || errors.Is(err, ErrFork) || pause(ctx, c.timing.again/4) != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return acks
}

// announce signs the feed as it is and tells every server.
func (c *Custodian) announce(ctx context.Context) ([]Ack, error) {
	var head signed
	err := c.patiently(ctx, func(ctx context.Context) (err error) {
		head, err = c.beat(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	return c.push(ctx, head), nil
}
