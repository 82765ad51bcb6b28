package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"kluis/cmd/kluis/backend"
	"kluis/cryptoserver/control"
	"kluis/custodian"
)

type keysStatusCmd struct{ target }

// Help says more than fits a line.
func (keysStatusCmd) Help() string {
	return `What every cryptoserver says of its tokens and keys (uses: since it started), how far each follows the control feed, which KEK epoch wraps how many data keys, and what the erasures are worth so far. It asks only; nothing is changed.`
}

func (c *keysStatusCmd) Run(ctx context.Context, s streams) error {
	return withCustodian(ctx, c.target, s, func(k *backend.Custodian) error {
		st, err := k.Status(ctx)
		if err != nil {
			return err
		}
		now := time.Now()
		v := statusView(st, now)
		if c.JSON {
			return printJSON(s.out, v)
		}
		return v.print(s.out, now)
	})
}

// keysStatusView is what keys status prints. Times are UTC.
type keysStatusView struct {
	Feed     feedView        `json:"feed"`
	Servers  []keyServerView `json:"servers"`
	DataKeys []epochView     `json:"data_keys"`
}

type feedView struct {
	Sequence    uint64     `json:"sequence"`
	AppendedAt  *time.Time `json:"appended_at"`  // of the last entry; null: there is none
	HeartbeatAt *time.Time `json:"heartbeat_at"` // the newest that the database or a server has; null: none
	ActiveEpoch uint32     `json:"active_epoch"` // 0: none yet
	ErasedKeys  int        `json:"erased_keys"`  // by name
	Before      string     `json:"erased_before,omitempty"`
	// Database is why the database cannot be relied on; empty: it agrees with
	// the custodian's copy.
	Database   string `json:"database,omitempty"`
	RolledBack bool   `json:"rolled_back"` // it is older than the copy
}

type keyServerView struct {
	Address         string      `json:"address"`
	Error           string      `json:"error,omitempty"` // why it could not be asked; then the rest is empty
	ID              string      `json:"id,omitempty"`
	Roles           []string    `json:"roles,omitempty"`
	Healthy         bool        `json:"healthy"`
	ControlSequence uint64      `json:"control_sequence"`
	ControlAt       *time.Time  `json:"control_at"`
	ActiveEpoch     uint32      `json:"active_epoch"`
	Tokens          []tokenView `json:"tokens,omitempty"`
}

type tokenView struct {
	Role    string    `json:"role"`
	Label   string    `json:"label"`
	State   string    `json:"state"`
	Handles uint64    `json:"handles"`
	Keys    []keyView `json:"keys"`
}

type keyView struct {
	Label      string   `json:"label"`
	Kind       string   `json:"kind"`
	Epoch      uint32   `json:"epoch,omitempty"`
	MadeOn     string   `json:"made_on,omitempty"`
	AgeDays    int      `json:"age_days"` // -1: the token does not say
	Attributes []string `json:"attributes"`
	Uses       uint64   `json:"uses"` // since the server started
}

type epochView struct {
	Epoch   uint32   `json:"epoch"`
	State   string   `json:"state"` // active, destroyed (given up in the feed; see held_by), old, or not active yet
	Keys    int64    `json:"keys"`
	First   string   `json:"first_month,omitempty"`
	Last    string   `json:"last_month,omitempty"`
	Erased  int64    `json:"erased"`  // data keys it wrapped when they were erased
	Waiting int64    `json:"waiting"` // were replaced, and are erased when their grace ends
	HeldBy  []string `json:"held_by"` // servers whose tokens have the KEK
	// NotAsked are the addresses of servers that may have it: of a destroyed
	// epoch.
	NotAsked []string `json:"not_asked,omitempty"`
	// Logical are the epochs whose KEK still opens what was erased, from a
	// backup of its time.
	Logical []uint32 `json:"logically_erased_until_destroyed"`
}

func statusView(st custodian.Status, now time.Time) keysStatusView {
	v := keysStatusView{Servers: []keyServerView{}, DataKeys: []epochView{}, Feed: feedView{
		Sequence: st.Sequence, AppendedAt: instantOf(st.HeadAt), ActiveEpoch: st.ActiveEpoch, ErasedKeys: st.ErasedKeys,
		RolledBack: errors.Is(st.Database, custodian.ErrRolledBack),
	}}
	if st.Before > 0 {
		v.Feed.Before = st.Before.String()
	}
	if st.Database != nil {
		v.Feed.Database = st.Database.Error()
	}
	newest := st.HeartbeatAt
	for _, s := range st.Servers {
		sv := keyServerView{Address: s.Address}
		if s.Err != nil {
			sv.Error = s.Err.Error()
			v.Servers = append(v.Servers, sv)
			continue
		}
		if s.HeadAt.After(newest) {
			newest = s.HeadAt
		}
		sv.ID, sv.Roles, sv.Healthy, sv.ControlSequence, sv.ControlAt, sv.ActiveEpoch = s.ServerID, s.Roles, s.Healthy, s.Sequence, instantOf(s.HeadAt), s.ActiveEpoch
		for _, t := range s.Tokens {
			tv := tokenView{Role: t.Role, Label: t.Label, State: t.State, Handles: t.Handles, Keys: []keyView{}}
			for _, k := range t.Keys {
				kv := keyView{Label: k.Label, Kind: k.Kind, Epoch: k.Epoch, AgeDays: -1, Attributes: k.Attributes, Uses: k.Uses}
				if !k.MadeOn.IsZero() {
					kv.MadeOn, kv.AgeDays = k.MadeOn.Format(time.DateOnly), int(now.Sub(k.MadeOn)/(24*time.Hour))
				}
				tv.Keys = append(tv.Keys, kv)
			}
			sv.Tokens = append(sv.Tokens, tv)
		}
		v.Servers = append(v.Servers, sv)
	}
	v.Feed.HeartbeatAt = instantOf(newest)
	for _, e := range st.Epochs {
		ev := epochView{Epoch: e.Epoch, State: "old", Keys: e.Keys.Keys, Erased: e.Deleted.Erased, Waiting: e.Deleted.Retired,
			HeldBy: append([]string{}, e.Holders...), Logical: []uint32{}}
		if e.OnlyLogically() {
			ev.Logical = append(ev.Logical, e.Open...)
		}
		switch {
		case e.Active:
			ev.State = "active"
		case e.Destroyed:
			ev.State, ev.NotAsked = "destroyed", st.Unasked
		case e.Epoch > st.ActiveEpoch:
			ev.State = "not active yet"
		}
		if e.Keys.Keys > 0 {
			ev.First, ev.Last = e.Keys.First.String(), e.Keys.Last.String()
		}
		v.DataKeys = append(v.DataKeys, ev)
	}
	return v
}

// instantOf is a time for JSON; null for none.
func instantOf(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// print shows it to people.
func (v keysStatusView) print(w io.Writer, now time.Time) error {
	v.Feed.print(w, now)
	servers := [][]string{{"SERVER", "ADDRESS", "ROLES", "FEED", "ACTIVE", "STATE"}}
	for _, s := range v.Servers {
		if s.Error != "" {
			servers = append(servers, []string{"?", s.Address, "", "", "", "not reached: " + s.Error})
			continue
		}
		servers = append(servers, []string{s.ID, s.Address, strings.Join(s.Roles, ","), fmt.Sprintf("%d, %s", s.ControlSequence, ago(s.ControlAt, now)),
			fmt.Sprint(s.ActiveEpoch), s.state(v.Feed.Sequence, now)})
	}
	fmt.Fprintln(w)
	if err := table(w, servers); err != nil {
		return err
	}
	keys := [][]string{{"SERVER", "ROLE", "TOKEN", "STATE", "HANDLES", "KEY", "AGE", "USES", "ATTRIBUTES"}}
	for _, s := range v.Servers {
		for _, t := range s.Tokens {
			for _, k := range t.Keys {
				keys = append(keys, []string{s.ID, t.Role, t.Label, t.State, thousands(int(t.Handles)), k.Label, k.age(), thousands(int(k.Uses)), strings.Join(k.Attributes, ", ")})
			}
			if len(t.Keys) == 0 {
				keys = append(keys, []string{s.ID, t.Role, t.Label, t.State, thousands(int(t.Handles))})
			}
		}
	}
	fmt.Fprintln(w)
	if err := table(w, keys); err != nil {
		return err
	}
	epochs := [][]string{{"EPOCH", "STATE", "DATA KEYS", "MONTHS", "HELD BY"}}
	for _, e := range v.DataKeys {
		months := ""
		if e.First != "" {
			months = e.First + " to " + e.Last
		}
		state := e.State
		if state == "destroyed" && len(e.HeldBy)+len(e.NotAsked) > 0 {
			state = "given up"
		}
		epochs = append(epochs, []string{fmt.Sprint(e.Epoch), state, thousands(int(e.Keys)), months, strings.Join(e.HeldBy, ",")})
	}
	fmt.Fprintln(w)
	if err := table(w, epochs); err != nil {
		return err
	}
	for _, e := range v.DataKeys {
		if len(e.Logical) > 0 {
			fmt.Fprintln(w, e.erasure())
		}
	}
	return nil
}

func (f feedView) print(w io.Writer, now time.Time) {
	active := "no epoch is active: run kluis keys rotate-kek"
	if f.ActiveEpoch > 0 {
		active = fmt.Sprintf("epoch %d is active", f.ActiveEpoch)
	}
	fmt.Fprintf(w, "Control feed: entry %d, newest heartbeat %s, %s.\n", f.Sequence, ago(f.HeartbeatAt, now), active)
	switch {
	case f.RolledBack:
		fmt.Fprintf(w, "THE DATABASE WAS PUT BACK TO AN OLDER STATE (%s). No heartbeat is signed, and nothing is served, until kluis keys reapply has erased again what was erased.\n", f.Database)
	case f.Database != "":
		fmt.Fprintf(w, "THE DATABASE: %s. What is said of data keys below is missing.\n", f.Database)
	case !fresh(f.HeartbeatAt, now):
		fmt.Fprintln(w, "THE HEARTBEAT IS TOO OLD: the cryptoservers open and seal nothing. Is kluis keys feed running?")
	}
	fmt.Fprintf(w, "Erased: %s data keys by name", thousands(f.ErasedKeys))
	if f.Before != "" {
		fmt.Fprintf(w, ", all of months before %s", f.Before)
	}
	fmt.Fprintln(w, ".")
}

func fresh(at *time.Time, now time.Time) bool { return at != nil && now.Sub(*at) <= control.MaxAge }

// state is the first thing that is wrong with a server.
func (s keyServerView) state(sequence uint64, now time.Time) string {
	switch {
	case !fresh(s.ControlAt, now):
		return "NO RECENT FEED: opens nothing"
	case s.ControlSequence < sequence:
		return fmt.Sprintf("behind: %d of %d entries", s.ControlSequence, sequence)
	case !s.Healthy:
		return "a token is not well"
	}
	return "serves"
}

func (k keyView) age() string {
	if k.AgeDays < 0 {
		return "?"
	}
	return fmt.Sprintf("%d d", k.AgeDays)
}

// erasure says honestly what the erasure of data keys is worth.
func (e epochView) erasure() string {
	line := fmt.Sprintf("%s data keys of epoch %d: %s", thousands(int(e.Erased)), e.Epoch, untilDestroyed(e.Logical))
	if e.State == "destroyed" && len(e.HeldBy) > 0 {
		line += fmt.Sprintf(" The tokens of %s still have the KEK of epoch %d: cryptoserver keys destroy.", strings.Join(e.HeldBy, ", "), e.Epoch)
	}
	if len(e.NotAsked) > 0 {
		line += fmt.Sprintf(" %s did not say what keys its tokens have.", strings.Join(e.NotAsked, ", "))
	}
	if e.Waiting > 0 {
		line += fmt.Sprintf(" %s more were replaced, and wait to be erased.", thousands(int(e.Waiting)))
	}
	return line
}

// untilDestroyed says what is left to do for an erasure to be one for good.
func untilDestroyed(epochs []uint32) string {
	words := make([]string, len(epochs))
	for i, e := range epochs {
		words[i] = fmt.Sprint(e)
	}
	what := "epoch " + words[0] + " is"
	if n := len(words) - 1; n > 0 {
		what = "epochs " + strings.Join(words[:n], ", ") + " and " + words[n] + " are"
	}
	return fmt.Sprintf("logically erased until %s destroyed. A backup from before, with a token that has the KEK, still opens it.", what)
}

// ago is how long ago something was.
func ago(t *time.Time, now time.Time) string {
	if t == nil {
		return "never"
	}
	d := now.Sub(*t)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s ago", max(int(d.Seconds()), 0))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min ago", int(d.Minutes()))
	}
	return t.Format(time.RFC3339)
}
