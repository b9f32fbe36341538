// A HashiCorp Vault to test against, built from its module. It is shipped nowhere.
package main

import (
	"os"

	"github.com/hashicorp/vault/command"
)

func main() {
	os.Exit(command.Run(os.Args[1:]))
}
