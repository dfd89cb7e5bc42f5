import sys

from shared.launch import main

sys.exit(main())
