package hsm

import (
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
	"pgregory.net/rapid"
)

// step does one event, by its word.
func (m *machine) step(event string, incident uint64) {
	switch event {
	case "doubt":
		m.doubt()
	case "settle":
		m.settle(m.incident)
	case "settle-old":
		m.settle(incident)
	case "fail":
		m.fail(false)
	case "latch":
		m.fail(true)
	case "probe":
		m.probe()
	case "opened":
		m.opened()
	case "served":
		m.served()
	}
}

func TestMachine(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		events string
		want   State
	}{
		{"", StateUp},
		{"doubt", StateSuspect},
		{"doubt settle", StateUp},
		{"doubt doubt settle", StateSuspect},
		{"doubt doubt settle settle", StateUp},
		{"settle", StateUp},
		{"doubt settle doubt settle-old", StateSuspect},
		{"fail", StateDown},
		{"doubt fail", StateDown},
		{"fail doubt", StateDown},
		{"fail settle", StateDown},
		{"doubt fail settle", StateDown},
		{"fail opened", StateDown},
		{"fail probe", StateProbing},
		{"fail probe probe", StateProbing},
		{"fail probe doubt settle", StateProbing},
		{"fail probe fail", StateDown},
		{"fail probe opened", StateUp},
		{"fail probe fail probe opened doubt", StateSuspect},
		{"doubt fail probe opened settle", StateUp},
		{"doubt fail probe opened doubt settle-old", StateSuspect},
		{"latch", StateDown},
		{"latch probe", StateDown},
		{"fail probe latch probe", StateDown},
		{"latch fail probe", StateDown},
		{"probe", StateUp},
		{"doubt probe", StateSuspect},
		{"opened", StateUp},
		{"doubt opened", StateSuspect},
		{"served", StateUp},
	} {
		var m machine
		for _, e := range strings.Fields(c.events) {
			m.step(e, 1)
		}
		if m.state != c.want {
			t.Errorf("%q: %s, want %s", c.events, m.state, c.want)
		}
		if m.serves() != (m.state == StateUp || m.state == StateSuspect) {
			t.Errorf("%q: serves %v", c.events, m.serves())
		}
	}
}

// TestMachineNever: whatever happens, a latched token never comes back, and no
// doubt is left in a token that is up.
func TestMachineNever(t *testing.T) {
	t.Parallel()
	events := []string{"doubt", "settle", "settle-old", "fail", "latch", "probe", "opened", "served"}
	rapid.Check(t, func(t *rapid.T) {
		var m machine
		latched := false
		for _, e := range rapid.SliceOf(rapid.SampledFrom(events)).Draw(t, "events") {
			m.step(e, rapid.Uint64Range(0, 5).Draw(t, "incident"))
			latched = latched || e == "latch"
			if latched && m.state != StateDown {
				t.Fatalf("latched, and %s", m.state)
			}
			if (m.state == StateSuspect) != (m.doubts > 0) {
				t.Fatalf("%s with %d doubts", m.state, m.doubts)
			}
		}
	})
}

func TestPauses(t *testing.T) {
	t.Parallel()
	var m machine
	for i, want := range []time.Duration{1, 2, 4, 8, 16, 30, 30} {
		want *= time.Second
		m.fail(false)
		least, middle, most := m.pause(time.Second, 30*time.Second, 0), m.pause(time.Second, 30*time.Second, 0.5), m.pause(time.Second, 30*time.Second, 0.999)
		if least != want/2 || middle != want || most <= middle || most >= want*3/2 {
			t.Errorf("failure %d: %s, %s, %s; want %s to %s", i+1, least, middle, most, want/2, want*3/2)
		}
		m.probe()
	}
	m.opened()
	m.fail(false)
	if got := m.pause(time.Second, 30*time.Second, 0.5); got != 30*time.Second {
		t.Errorf("opened, but nothing served: pause %s", got)
	}
	m.probe()
	m.opened()
	m.served()
	m.fail(false)
	if got := m.pause(time.Second, 30*time.Second, 0.5); got != time.Second {
		t.Errorf("after a good batch: pause %s", got)
	}
	for range 1000 {
		m.fail(false)
	}
	if got := m.pause(time.Second, 30*time.Second, 0.5); got != 30*time.Second {
		t.Errorf("after a thousand failures: %s", got)
	}
}

func TestPINFlags(t *testing.T) {
	t.Parallel()
	for flags, want := range map[uint]bool{
		0:                                  true,
		pkcs11.CKF_USER_PIN_COUNT_LOW:      true, // somebody mistyped it; ours may be right
		pkcs11.CKF_SO_PIN_LOCKED:           true,
		pkcs11.CKF_USER_PIN_FINAL_TRY:      false,
		pkcs11.CKF_USER_PIN_LOCKED:         false,
		pkcs11.CKF_USER_PIN_TO_BE_CHANGED:  true,
		pkcs11.CKF_USER_PIN_FINAL_TRY | 64: false,
	} {
		err := presentable(flags)
		if (err == nil) != want || err != nil && classify(err) != classLatched {
			t.Errorf("flags %#x: %v", flags, err)
		}
	}
}
