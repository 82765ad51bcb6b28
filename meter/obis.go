package meter

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// OBIS is an object identification code (IEC 62056-61) of the reduced form
// A-B:C.D.E: medium, channel, quantity, processing, tariff. The catalogue
// writes the channel as "n" where it differs per installation, as with a gas
// meter on the M-Bus.
type OBIS struct {
	A, B, C, D, E uint8
	AnyChannel    bool // "n"; B is 0
}

// ErrOBIS says that a text is not an OBIS code.
var ErrOBIS = errors.New(`not an OBIS code: want A-B:C.D.E, each 0 to 255, or "n" for B`)

// ParseOBIS reads the only spelling there is of a code: no leading zeros, no
// spaces, no sixth group.
func ParseOBIS(s string) (OBIS, error) {
	a, rest, ok1 := strings.Cut(s, "-")
	b, rest, ok2 := strings.Cut(rest, ":")
	c, rest, ok3 := strings.Cut(rest, ".")
	d, e, ok4 := strings.Cut(rest, ".")
	if !ok1 || !ok2 || !ok3 || !ok4 {
		return OBIS{}, ErrOBIS
	}
	o := OBIS{AnyChannel: b == "n"}
	if o.AnyChannel {
		b = "0"
	}
	for _, g := range []struct {
		text string
		to   *uint8
	}{{a, &o.A}, {b, &o.B}, {c, &o.C}, {d, &o.D}, {e, &o.E}} {
		n, err := strconv.ParseUint(g.text, 10, 8)
		if err != nil || strconv.FormatUint(n, 10) != g.text {
			return OBIS{}, ErrOBIS
		}
		*g.to = uint8(n)
	}
	return o, nil
}

func (o OBIS) String() string {
	channel := strconv.Itoa(int(o.B))
	if o.AnyChannel {
		channel = "n"
	}
	return fmt.Sprintf("%d-%s:%d.%d.%d", o.A, channel, o.C, o.D, o.E)
}
