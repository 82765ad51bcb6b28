package custodian

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"kluis/cryptoserver/control"
)

// the roles that use KEKs.
var kekRoles = []string{"open", "seal", "mint", "rotate"}

// StragglerTime is how long after a later epoch was activated an epoch may be
// destroyed: by then every import has ended that had data keys minted before.
const StragglerTime = 24 * time.Hour

// Activate has data keys minted and rewrapped under an epoch from now on. Every
// cryptoserver must answer and have the epoch's KEK on every token of each role
// that uses it, and each of those roles must be served; else ErrLacking says
// who lacks what. An epoch that is active already is told to the servers again;
// an earlier one is ErrRefused.
func (c *Custodian) Activate(ctx context.Context, epoch uint32) ([]Ack, error) {
	if err := c.patiently(ctx, c.sync); err != nil {
		return nil, err
	}
	if epoch != 0 && c.feed().Active() == epoch {
		return c.announce(ctx)
	}
	if err := c.feed().Check(control.Entry{Kind: control.ActivateEpoch, Epoch: epoch}); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	if lacks := lacking(c.servers.Status(ctx), epoch); len(lacks) > 0 {
		return nil, fmt.Errorf("%w for epoch %d:\n  %s", ErrLacking, epoch, strings.Join(lacks, "\n  "))
	}
	head, err := c.append(ctx, control.Entry{Kind: control.ActivateEpoch, Epoch: epoch})
	if err != nil {
		return nil, err
	}
	return c.push(ctx, head), nil
}

// lacking says what stands in the way of an epoch.
func lacking(servers []ServerStatus, epoch uint32) []string {
	var lacks []string
	served := map[string]bool{}
	for _, s := range servers {
		if s.Err != nil {
			lacks = append(lacks, fmt.Sprintf("%s does not answer (%v)", s.Address, s.Err))
			continue
		}
		for _, role := range kekRoles {
			tokens := 0
			for _, t := range s.Tokens {
				if t.Role != role {
					continue
				}
				tokens++
				if !slices.ContainsFunc(t.Keys, func(k KeyStatus) bool { return k.Kind == "kek" && k.Epoch == epoch }) {
					lacks = append(lacks, fmt.Sprintf("%s (%s) has no KEK of it on token %s of role %s", s.ServerID, s.Address, t.Label, role))
				}
			}
			if tokens > 0 {
				served[role] = true
			} else if slices.Contains(s.Roles, role) {
				lacks = append(lacks, fmt.Sprintf("%s (%s) does not say what tokens it has for role %s", s.ServerID, s.Address, role))
			}
		}
	}
	for _, role := range kekRoles {
		if !served[role] {
			lacks = append(lacks, "no server that answers has the role "+role)
		}
	}
	return lacks
}

// DestroyEpoch gives up the KEK of an epoch, for ever: no cryptoserver uses it
// from now on, and on each the tokens' administrator may destroy its objects.
// ErrRefused while it is the active one or a later, while a data key is wrapped
// under it, and for StragglerTime after a later one was activated; noImport is
// the operator's word that no import is under way that began before that.
func (c *Custodian) DestroyEpoch(ctx context.Context, epoch uint32, noImport bool) ([]Ack, error) {
	if err := c.patiently(ctx, c.sync); err != nil {
		return nil, err
	}
	if c.feed().Destroyed(epoch) {
		return c.announce(ctx)
	}
	entry := control.Entry{Kind: control.DestroyEpoch, Epoch: epoch}
	if err := c.feed().Check(entry); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	if !noImport {
		since, err := c.replacedAt(epoch)
		if err != nil {
			return nil, err
		}
		if left := StragglerTime - c.now().Sub(since); left > 0 {
			return nil, fmt.Errorf("%w: an import that began before the later epoch was activated may still store data keys under epoch %d: "+
				"wait %s, or say that no such import is under way (--no-import-is-under-way)", ErrRefused, epoch, left.Round(time.Minute))
		}
	}
	// Counted after that: whatever a straggler stored is seen.
	counts, err := c.store.CountKeys(ctx)
	if err != nil {
		return nil, err
	}
	if n := counts[epoch].Keys; n > 0 {
		return nil, fmt.Errorf("%w: %d data keys are wrapped under epoch %d, and would be lost: run  kluis keys rotate-kek  to its end, "+
			"or erase the metering points whose data keys are damaged", ErrRefused, n, epoch)
	}
	head, err := c.append(ctx, entry)
	if err != nil {
		return nil, err
	}
	return c.push(ctx, head), nil
}

// DestructionProof is what shows the tokens' administrators that the epoch was
// given up, see control.OpenProof; ErrRefused: it was not.
func (c *Custodian) DestructionProof(epoch uint32) ([]byte, error) {
	var before control.Hash
	for from := uint64(1); ; {
		page, err := c.copy.read(from, chunkSize)
		if err != nil {
			return nil, err
		}
		if len(page) == 0 {
			return nil, fmt.Errorf("%w: epoch %d was not given up", ErrRefused, epoch)
		}
		for _, a := range page {
			e, err := control.ParseEntry(a.Entry)
			if err != nil {
				return nil, err
			}
			if e.Kind == control.DestroyEpoch && e.Epoch == epoch {
				return control.EncodeProof(before, a.Entry, a.Head), nil
			}
			before = before.Next(a.Entry)
		}
		from += uint64(len(page))
	}
}

// replacedAt is when an epoch later than this was first activated, by the clock
// of the server that signed.
func (c *Custodian) replacedAt(epoch uint32) (time.Time, error) {
	for from := uint64(1); ; {
		page, err := c.copy.read(from, chunkSize)
		if err != nil {
			return time.Time{}, err
		}
		if len(page) == 0 {
			return time.Time{}, fmt.Errorf("%w: no later epoch than %d was activated", ErrRefused, epoch)
		}
		for _, a := range page {
			e, err := control.ParseEntry(a.Entry)
			if err != nil {
				return time.Time{}, err
			}
			if e.Kind == control.ActivateEpoch && e.Epoch > epoch {
				head, err := control.OpenHead(a.Head, c.keys)
				return head.At, err
			}
		}
		from += uint64(len(page))
	}
}
