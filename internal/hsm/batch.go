package hsm

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"kluis/cryptoserver/token"

	"github.com/miekg/pkcs11"
)

const (
	// chunk is how many operations one crossing into C does at most. Between
	// chunks an abandoned batch stops, and each has the call's time to itself.
	chunk = 64
	// maxBatch bounds a batch in bytes; offsets are 32 bits.
	maxBatch = 64 << 20
)

// batch is one Open or Seal, laid out flat. The buffers belong to the batch,
// not to the caller, so that a caller can leave while the module still
// writes. They hold plaintext and are cleared before they are used again.
type batch struct {
	encrypt bool
	// generation of the group when the caller came; see group.
	generation uint64
	in, out    []byte
	keys       []batchKey
	items      []gcmItem
	of         []int   // item → key, -1 when the item never had a chance
	errs       []error // by item
	unwraps    []unwrapItem
	targets    []int // unwrap → key
}

type batchKey struct {
	id      digest
	epoch   uint32
	wrapped int // offset into in; -1 when its length is wrong
	same    int // index of the first key with the same digest
	cached  *cachedKey
	failed  bool // to unwrap, the last time
	err     error
}

var batches = sync.Pool{New: func() any { return new(batch) }}

func (b *batch) release() {
	clear(b.in)
	clear(b.out)
	if cap(b.in)+cap(b.out) > 4<<20 {
		return // an unusually large one need not stay
	}
	clear(b.errs)
	*b = batch{in: b.in[:0], out: b.out[:0], keys: b.keys[:0], items: b.items[:0], of: b.of[:0],
		errs: b.errs[:0], unwraps: b.unwraps[:0], targets: b.targets[:0]}
	batches.Put(b)
}

// layout copies a batch into its flat form. Errors here are the caller's
// mistakes; what is wrong with data is put to its item.
func (b *batch) layout(encrypt bool, keys []token.WrappedKey, items []token.Item) error {
	if len(keys) > token.MaxKeys {
		return fmt.Errorf("batch has %d keys, at most %d may be: %w", len(keys), token.MaxKeys, token.ErrBadData)
	}
	b.encrypt = encrypt
	inSize, outSize := len(keys)*wrappedSize, 0
	for i := range items {
		it := &items[i]
		if it.Key < 0 || it.Key >= len(keys) {
			return fmt.Errorf("item %d names key %d of %d: %w", i, it.Key, len(keys), token.ErrBadData)
		}
		if n := len(it.In); encrypt && cap(it.Out) < n+tagSize || !encrypt && cap(it.Out) < n-tagSize {
			return fmt.Errorf("item %d has no room for its result: %w", i, token.ErrBadData)
		}
		inSize += ivSize + len(it.AAD) + len(it.In)
		outSize += len(it.In) + tagSize
		if inSize > maxBatch || outSize > maxBatch {
			return fmt.Errorf("batch is larger than %d bytes: %w", maxBatch, token.ErrBadData)
		}
	}
	if inSize > maxBatch || len(items) > math.MaxInt32 {
		return fmt.Errorf("batch is larger than %d bytes: %w", maxBatch, token.ErrBadData)
	}
	// Grown before anything is copied: append would leave an uncleared copy.
	b.in, b.out = sized(b.in, inSize), sized(b.out, outSize)[:outSize]

	first := make(map[digest]int, len(keys))
	for i := range keys {
		k := batchKey{id: keyDigest(&keys[i]), epoch: keys[i].Epoch, wrapped: -1, same: i}
		if len(keys[i].Wrapped) == wrappedSize {
			k.wrapped = len(b.in)
			b.in = append(b.in, keys[i].Wrapped...)
		}
		if j, ok := first[k.id]; ok {
			k.same = j
		} else {
			first[k.id] = i
		}
		b.keys = append(b.keys, k)
	}
	out := 0
	for i := range items {
		it := &items[i]
		g, of := gcmItem{}, -1
		var err error
		if !encrypt && (len(it.IV) != ivSize || len(it.In) < tagSize) {
			err = token.ErrBadData
		} else {
			of = it.Key
			g.iv = cUint32(len(b.in))
			if encrypt {
				b.in = b.in[:len(b.in)+ivSize] // cleared; the token fills it
			} else {
				b.in = append(b.in, it.IV...)
			}
			g.aad, g.aad_len = cUint32(len(b.in)), cUint32(len(it.AAD))
			b.in = append(b.in, it.AAD...)
			g.data, g.data_len = cUint32(len(b.in)), cUint32(len(it.In))
			b.in = append(b.in, it.In...)
			// SoftHSM asks for the tag's room when it decrypts, too.
			g.out, g.out_len = cUint32(out), cUint32(len(it.In)+tagSize)
			out += len(it.In) + tagSize
		}
		b.items, b.of, b.errs = append(b.items, g), append(b.of, of), append(b.errs, err)
	}
	return nil
}

func sized(b []byte, n int) []byte {
	if cap(b) < n {
		return make([]byte, 0, n)
	}
	return b[:0]
}

func keyDigest(k *token.WrappedKey) digest {
	var buf [4 + wrappedSize]byte
	return sha256.Sum256(append(binary.BigEndian.AppendUint32(buf[:0], k.Epoch), k.Wrapped...))
}

// results copies what came out to the caller's items.
func (b *batch) results(items []token.Item) {
	for i := range items {
		it := &items[i]
		it.Err = b.errs[i]
		it.Out = it.Out[:0]
		if it.Err != nil {
			continue
		}
		g := &b.items[i]
		it.Out = append(it.Out, b.out[g.out:g.out+g.out_len]...)
		if b.encrypt {
			it.IV = append(it.IV[:0], b.in[g.iv:g.iv+ivSize]...)
		}
	}
}

// start forgets what an earlier attempt on another session came to.
func (b *batch) start() {
	for i := range b.keys {
		k := &b.keys[i]
		k.cached, k.failed, k.err = nil, false, nil
	}
	for i := range b.items {
		b.items[i].rv = notRun
		if b.of[i] >= 0 {
			b.errs[i] = nil
		}
	}
}

// again readies what failed for one more try.
func (b *batch) again() {
	for i := range b.keys {
		if k := &b.keys[i]; k.failed {
			k.failed, k.err = false, nil
		}
	}
	for i := range b.items {
		if b.items[i].rv != 0 {
			b.items[i].rv = notRun
		}
	}
}

// run does the batch. An item fails for good when it failed twice and a known
// vector came out in between: then it is the data, not the token.
func (a *access) run(b *batch) (err error) {
	b.start()
	defer func() {
		if errors.Is(err, errAbandoned) || errors.Is(err, errHolder) {
			return
		}
		tidying := a.holding(func() error {
			for i := range b.keys {
				if k := b.keys[i].cached; k != nil {
					a.unwrapped.release(k)
				}
			}
			return a.flush()
		})
		switch {
		case errors.Is(tidying, errAbandoned):
			err = tidying
		case err == nil:
			a.tidying = tidying
		}
	}()
	suspect, err := a.pass(b)
	if err != nil || len(suspect) == 0 {
		return err
	}
	defer a.worker.pool.doubt()()
	if err := a.sound(suspect); err != nil {
		return err
	}

	b.again()
	if _, err = a.pass(b); err != nil {
		return err
	}
	damaged := 0
	for i := range b.items {
		if b.of[i] >= 0 && errors.Is(b.errs[i], token.ErrBadData) {
			damaged++
		}
	}
	a.metrics.damaged(damaged)
	return nil
}

// sound computes the known vectors of epochs whose keys did not serve: when they
// come out it is the data, else it is the token (errCanary).
func (a *access) sound(suspect map[uint32]bool) error {
	for epoch := range suspect {
		if err := a.canary(epoch); err != nil {
			if classify(err) == classData {
				return fmt.Errorf("%w: %w", errCanary, err)
			}
			return err
		}
	}
	return nil
}

// pass works through what has not run yet and names the epochs of what failed.
func (a *access) pass(b *batch) (suspect map[uint32]bool, err error) {
	suspect = map[uint32]bool{}
	if err := a.resolve(b, suspect); err != nil {
		return nil, err
	}
	for i := range b.items {
		g := &b.items[i]
		g.key = 0
		if b.of[i] < 0 || g.rv == 0 {
			continue
		}
		k := &b.keys[b.keys[b.of[i]].same]
		if b.errs[i] = k.err; k.err == nil {
			g.key = cUint64(k.cached.handle)
			g.out_len = g.data_len + tagSize
		}
	}
	if b.encrypt {
		if err := a.fillIVs(b); err != nil {
			return nil, err
		}
	}
	for from := 0; from < len(b.items); from += chunk {
		if a.left() {
			return nil, token.ErrUnavailable
		}
		part := b.items[from:min(from+chunk, len(b.items))]
		if err := a.call(func() error {
			if n := a.shim.gcm(a.work, b.encrypt, part, b.in, b.out); n < len(part) {
				return pkcs11.Error(part[n].rv)
			}
			return nil
		}); err != nil {
			return nil, err
		}
		for i := range part {
			g := &part[i]
			want := g.data_len + tagSize
			if !b.encrypt {
				want = g.data_len - tagSize
			}
			if g.key == 0 {
				continue
			}
			if g.rv == 0 && g.out_len != want {
				g.rv = notRun
			}
			if g.rv != 0 {
				b.errs[from+i] = token.ErrBadData
				suspect[b.keys[b.of[from+i]].epoch] = true
			}
		}
	}
	return suspect, nil
}

// resolve gives each key of the batch a handle or an error.
func (a *access) resolve(b *batch, suspect map[uint32]bool) error {
	return a.holding(func() error {
		now := time.Now()
		b.unwraps, b.targets = b.unwraps[:0], b.targets[:0]
		for i := range b.keys {
			k := &b.keys[i]
			if k.same != i || k.cached != nil || k.err != nil {
				continue
			}
			kek, ok := a.keks[k.epoch]
			switch {
			case k.wrapped < 0:
				k.err = token.ErrBadData
				continue
			case !ok:
				k.err = token.ErrUnknownEpoch
				continue
			}
			if k.cached, ok = a.unwrapped.get(k.id, now); ok {
				continue
			}
			b.unwraps = append(b.unwraps, unwrapItem{kek: cUint64(kek), rv: notRun, wrapped: cUint32(k.wrapped), wrapped_len: wrappedSize})
			b.targets = append(b.targets, i)
		}
		for from := 0; from < len(b.unwraps); from += chunk {
			if a.left() {
				return token.ErrUnavailable
			}
			part := b.unwraps[from:min(from+chunk, len(b.unwraps))]
			var n int
			if err := a.call(func() error {
				n = a.shim.unwrap(a.session, part, b.in, a.template)
				return nil
			}); err != nil {
				return err
			}
			a.made(n)
			for u := range part[:n] {
				k := &b.keys[b.targets[from+u]]
				a.used(pkcs11.ObjectHandle(part[u].kek), 1)
				if part[u].rv != 0 {
					k.failed, k.err = true, token.ErrBadData
					suspect[k.epoch] = true
					continue
				}
				k.cached = a.unwrapped.put(k.id, uint64(part[u].key), now, b.generation == a.worker.pool.generation.Load())
			}
			if n < len(part) {
				return held(pkcs11.Error(part[n].rv))
			}
		}
		return nil
	})
}

// fillIVs draws the IVs of what is about to be sealed from the token's RNG.
func (a *access) fillIVs(b *batch) error {
	random := make([]byte, len(b.items)*ivSize)
	if err := a.random(random); err != nil {
		return err
	}
	for i := range b.items {
		if b.items[i].key != 0 {
			copy(b.in[b.items[i].iv:], random[i*ivSize:(i+1)*ivSize])
		}
	}
	return nil
}

func (a *access) random(p []byte) error {
	return a.call(func() error { return a.shim.random(a.work, p) })
}

// flush destroys the data keys that fell out of the cache and are not used;
// by the holder.
func (a *access) flush() error {
	if a.unwrapped == nil {
		return nil
	}
	return a.unwrapped.flush(func(handles []uint64) error {
		return a.call(func() error { return held(a.shim.destroy(a.session, handles)) })
	})
}

// gcm does a whole Open or Seal on one token.
func (p *pool) gcm(ctx context.Context, generation uint64, encrypt bool, keys []token.WrappedKey, items []token.Item) error {
	if len(items) == 0 {
		return nil
	}
	b := batches.Get().(*batch)
	b.generation = generation
	if err := b.layout(encrypt, keys, items); err != nil {
		b.release()
		return err
	}
	kind := "open"
	if encrypt {
		kind = "seal"
	}
	mine, err := p.do(ctx, kind, len(items), func(a *access) error { return a.run(b) }, b.release)
	if !mine {
		return err
	}
	if err == nil {
		b.results(items)
	}
	b.release()
	return err
}

// unwraps says whether one token unwraps a data key; ErrBadData when not.
func (p *pool) unwraps(ctx context.Context, key token.WrappedKey) error {
	b := &batch{generation: math.MaxUint64} // of no group: nothing stays in the cache
	if err := b.layout(false, []token.WrappedKey{key}, nil); err != nil {
		return err
	}
	mine, err := p.do(ctx, "check", 1, func(a *access) error { return a.run(b) }, func() {})
	if !mine || err != nil {
		return err
	}
	return b.keys[0].err
}
