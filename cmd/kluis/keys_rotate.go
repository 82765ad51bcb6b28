package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"kluis/cmd/kluis/backend"
	"kluis/custodian"
)

// withCustodian opens the installation's key custodian for a command.
func withCustodian(ctx context.Context, t target, s streams, use func(*backend.Custodian) error) error {
	conf, err := t.load()
	if err != nil {
		return err
	}
	k, err := backend.OpenCustodian(ctx, conf, commandLog(s))
	if err != nil {
		return err
	}
	return errors.Join(use(k), k.Close())
}

type keysRotateKEKCmd struct {
	target
	Epoch uint32  `placeholder:"N" help:"Make this epoch active. Default: the newest that every cryptoserver has."`
	Rate  float64 `placeholder:"N" help:"Rewrap at most N data keys per second. Default: as many as the HSMs do."`
	Yes   bool    `help:"Do not ask."`
}

// Help says more than fits a line.
func (keysRotateKEKCmd) Help() string {
	return `First the newest epoch becomes the active one: new data keys are wrapped under its KEK. That needs every cryptoserver to answer and to have the KEK on every token (kluis keys ceremony, then a restart of each). Then every data key of an older epoch is wrapped under it, in batches, inside the HSMs. Readers and imports are not disturbed. It may be killed at any moment: run again, it goes on.`
}

// rotated is what rotate-kek prints.
type rotated struct {
	Epoch     uint32    `json:"epoch"`
	Activated bool      `json:"activated"`
	Rewrapped int64     `json:"rewrapped"`
	Changed   int64     `json:"changed_by_others"`
	Erased    int64     `json:"erased"`
	Damaged   int64     `json:"damaged"`
	Left      int64     `json:"left"`
	Servers   []ackView `json:"servers,omitempty"`
}

func (c *keysRotateKEKCmd) Run(ctx context.Context, s streams) error {
	if c.Rate < 0 {
		return usage("--rate must not be negative")
	}
	return withCustodian(ctx, c.target, s, func(k *backend.Custodian) error {
		st, err := k.Status(ctx)
		if err != nil {
			return err
		}
		if st.Database != nil {
			return st.Database
		}
		epoch := c.Epoch
		if epoch == 0 {
			epoch = newest(st)
		}
		if epoch == 0 {
			return errors.New("no epoch can be active: no KEK is on every token of every cryptoserver. Run kluis keys ceremony, restart the cryptoservers, and see kluis keys status")
		}
		out := rotated{Epoch: epoch}
		if epoch != st.ActiveEpoch {
			if err := confirm(s, c.Yes, "yes", "yes", "Epoch %d becomes the active one, for good; it was %d. %s data keys of other epochs are then wrapped under it.",
				epoch, st.ActiveEpoch, thousands(int(others(st, epoch)))); err != nil {
				return err
			}
			acks, err := k.Activate(ctx, epoch)
			if err != nil {
				return fmt.Errorf("epoch %d was not made active: %w", epoch, err)
			}
			out.Activated, out.Servers = true, ackViews(acks)
			fmt.Fprintf(s.err, "Epoch %d is active.\n", epoch)
		}
		show := newProgress(s.err)
		what := fmt.Sprintf("rewrapping under epoch %d", epoch)
		done, err := k.Rewrap(ctx, custodian.RewrapOptions{Rate: c.Rate, Progress: func(r custodian.RewrapStatus) {
			show.bar(what, r.Rewrapped+r.Changed+r.Erased+r.Damaged, r.Total)
		}})
		show.done()
		out.Rewrapped, out.Changed, out.Erased, out.Damaged, out.Left = done.Rewrapped, done.Changed, done.Erased, done.Damaged, done.Left
		if err != nil {
			return fmt.Errorf("%s data keys were rewrapped, %s are left: %w\nRun the same command again to go on",
				thousands(int(done.Rewrapped)), thousands(int(done.Total-done.Rewrapped-done.Changed)), err)
		}
		if err := out.print(s, c.JSON); err != nil {
			return err
		}
		if c.Epoch == 0 && !out.Activated && done.Total == 0 {
			fmt.Fprintln(s.err, "No newer epoch is on every token: after kluis keys ceremony, restart each cryptoserver.")
		}
		if done.Left > 0 {
			return fmt.Errorf("%s data keys are still wrapped under other epochs: %s do not unwrap (damaged), %s are erased, or wrapped under a destroyed epoch alone, and still there (kluis keys reapply tells)",
				thousands(int(done.Left)), thousands(int(done.Damaged)), thousands(int(done.Erased)))
		}
		return nil
	})
}

func (r rotated) print(s streams, asJSON bool) error {
	if asJSON {
		return printJSON(s.out, r)
	}
	fmt.Fprintf(s.out, "Epoch %d is active. %s data keys rewrapped", r.Epoch, thousands(int(r.Rewrapped)))
	if r.Changed > 0 {
		fmt.Fprintf(s.out, ", %s by others meanwhile", thousands(int(r.Changed)))
	}
	_, err := fmt.Fprintf(s.out, ", %s left under other epochs.\n", thousands(int(r.Left)))
	return err
}

// newest is the newest epoch of which every token that must have it says so, or
// the active one when there is none newer; 0: neither.
func newest(st custodian.Status) uint32 {
	best := st.ActiveEpoch
	for _, e := range st.Epochs {
		if e.Epoch > best && !e.Destroyed && everywhere(st.Servers, e.Epoch) {
			best = e.Epoch
		}
	}
	return best
}

// everywhere says whether an epoch's KEK is on every token with KEKs. Whether
// the servers are ready for it Activate decides.
func everywhere(servers []custodian.ServerStatus, epoch uint32) bool {
	for _, s := range servers {
		for _, t := range s.Tokens {
			if t.Role != "sign" && !slices.ContainsFunc(t.Keys, func(k custodian.KeyStatus) bool { return k.Kind == "kek" && k.Epoch == epoch }) {
				return false
			}
		}
	}
	return true
}

func others(st custodian.Status, epoch uint32) (n int64) {
	for _, e := range st.Epochs {
		if e.Epoch != epoch {
			n += e.Keys.Keys
		}
	}
	return n
}

// ackView says whether a server has acknowledged the control feed.
type ackView struct {
	Address      string `json:"address"`
	Acknowledged bool   `json:"acknowledged"`
	Error        string `json:"error,omitempty"`
}

func ackViews(acks []custodian.Ack) []ackView {
	out := make([]ackView, len(acks))
	for i, a := range acks {
		out[i] = ackView{Address: a.Address, Acknowledged: a.Err == nil}
		if a.Err != nil {
			out[i].Error = a.Err.Error()
		}
	}
	return out
}

// printAcks says which servers acknowledged, and what of those that did not.
func printAcks(s streams, acks []ackView) {
	var yes []string
	for _, a := range acks {
		if a.Acknowledged {
			yes = append(yes, a.Address)
		}
	}
	if len(yes) > 0 {
		fmt.Fprintf(s.out, "Acknowledged by %s.\n", strings.Join(yes, ", "))
	}
	for _, a := range acks {
		if !a.Acknowledged {
			fmt.Fprintf(s.out, "NOT acknowledged by %s (%s): it uses no key once its feed is a minute old, and follows when it is back.\n", a.Address, a.Error)
		}
	}
}

type keysRotateDataKeysCmd struct {
	target
	EAN          eanFlag       `name:"ean" placeholder:"EAN" xor:"which" required:"" help:"Those of a metering point (EAN-18)."`
	All          bool          `xor:"which" required:"" help:"Those of all metering points."`
	MintedBefore string        `name:"minted-before" placeholder:"WHEN" help:"Those minted before this time: to go on where an earlier run was interrupted. Default: now."`
	Grace        time.Duration `default:"6m" placeholder:"TIME" help:"How long replaced data keys are kept from being erased; longer than the request_timeout of every gateway. Default: 6m."`
	Yes          bool          `help:"Do not ask."`
}

// Help says more than fits a line.
func (keysRotateDataKeysCmd) Help() string {
	return `For each data key a new one is minted, and everything that was sealed under the old one is sealed again under the new, in the HSMs; readers and imports go on. When the grace is over, the replaced data keys are erased in the control feed: backups from before do not open from then on. It may be killed at any moment: run again with the --minted-before that it printed.`
}

func (c *keysRotateDataKeysCmd) Run(ctx context.Context, s streams) error {
	if c.Grace <= 0 {
		return usage("--grace must be longer than the request_timeout of every gateway")
	}
	sel := custodian.KeySelection{EAN: c.EAN.EAN}
	if c.MintedBefore != "" {
		var err error
		if sel.MintedBefore, err = time.Parse(time.RFC3339Nano, c.MintedBefore); err != nil {
			return usage("--minted-before must be a time with offset, as an earlier run printed it")
		}
	}
	return withCustodian(ctx, c.target, s, func(k *backend.Custodian) error {
		if c.All {
			st, err := k.Status(ctx)
			if err != nil {
				return err
			}
			if st.Database != nil {
				return st.Database
			}
			if err := confirm(s, c.Yes, "yes", "yes", "All %s data keys will be replaced, and everything sealed again.", thousands(int(others(st, 0)))); err != nil {
				return err
			}
		}
		show := newProgress(s.err)
		st, err := k.RotateDataKeys(ctx, sel, custodian.RotateOptions{Grace: c.Grace, Progress: func(r custodian.RotateStatus) {
			if r.Waiting > 0 {
				show.say("%s data keys replaced; %s wait for their grace of %s to end, to be erased", thousands(int(r.Rotated)), thousands(r.Waiting), c.Grace)
			} else {
				show.say("%s data keys replaced, %s blocks sealed again", thousands(int(r.Rotated)), thousands(int(r.Blocks)))
			}
		}})
		show.done()
		if err != nil {
			again := "Run the same command again"
			if !st.MintedBefore.IsZero() {
				again += " with --minted-before " + st.MintedBefore.Format(time.RFC3339Nano)
			}
			return fmt.Errorf("%s data keys were replaced, and %s erased: %w\n%s to go on", thousands(int(st.Rotated)), thousands(int(st.Erased)), err, again)
		}
		if err := printRotation(s, st, c.JSON); err != nil {
			return err
		}
		if st.TooOften > 0 {
			err = fmt.Errorf("%s data keys were left as they are: something under them was sealed too often within a day; run the same command again tomorrow, with --minted-before %s",
				thousands(int(st.TooOften)), st.MintedBefore.Format(time.RFC3339Nano))
		}
		if st.Damaged > 0 {
			return errors.Join(err, fmt.Errorf("%s data keys were left as they are: they, or something sealed under them, are damaged", thousands(int(st.Damaged))))
		}
		return err
	})
}

func printRotation(s streams, st custodian.RotateStatus, asJSON bool) error {
	acks := ackViews(st.Acks)
	if asJSON {
		return printJSON(s.out, map[string]any{"rotated": st.Rotated, "blocks": st.Blocks, "damaged": st.Damaged, "too_often": st.TooOften, "gone": st.Gone,
			"erased": st.Erased, "entries": st.Sequences, "servers": acks, "minted_before": st.MintedBefore})
	}
	fmt.Fprintf(s.out, "%s data keys replaced, %s blocks sealed again, %s replaced data keys erased", thousands(int(st.Rotated)), thousands(int(st.Blocks)), thousands(int(st.Erased)))
	if len(st.Sequences) > 0 {
		fmt.Fprintf(s.out, " (control entry %s)", sequences(st.Sequences))
	}
	fmt.Fprintln(s.out, ".")
	printAcks(s, acks)
	return nil
}

func sequences(list []uint64) string {
	words := make([]string, len(list))
	for i, n := range list {
		words[i] = fmt.Sprint(n)
	}
	return strings.Join(words, ", ")
}
