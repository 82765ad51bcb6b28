package meter

import (
	"bytes"
	_ "embed"
)

// The profiles that come with the program. This is the only file that names a
// market; a test refuses any other.

//go:embed nl.yaml
var nlYAML []byte

//go:embed be.yaml
var beYAML []byte

// NL returns a copy of the embedded profile nl.yaml.
func NL() []byte { return bytes.Clone(nlYAML) }

// BE returns a copy of the embedded profile be.yaml.
func BE() []byte { return bytes.Clone(beYAML) }
